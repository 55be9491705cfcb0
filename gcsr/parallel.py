"""Data parallelism: what a rank takes of a batch, and what the ranks tell each other."""

import contextlib
import gc
import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.connection import wait
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from gcsr.errors import InvalidInputError
from gcsr.randomness import seed_generators
from gcsr.scratch import scratch_folder

__all__ = ["START_METHOD", "Workers", "backend", "from_environment", "is_lost_worker", "run_workers"]

START_METHOD: Final = "forkserver"  # of `run_workers`; what is shared with its processes must be made for the same
_TIMEOUT = timedelta(minutes=10)  # the first rank may still be loading data


@dataclass(frozen=True, slots=True)
class Workers:
    """The processes that train one network together.

    Attributes:
        group: their process group; None for a single process.
        rank: this process's number in it.
        world_size: how many they are.
    """

    group: dist.ProcessGroup | None = None
    rank: int = 0
    world_size: int = 1

    @classmethod
    def of(cls, group: dist.ProcessGroup | None) -> "Workers":
        """The workers of a process group, or the single process."""
        if group is None:
            return cls()
        return cls(group, dist.get_rank(group), dist.get_world_size(group))

    def share(self, rows: Tensor) -> Tensor:
        """This rank's rows: shares differ by at most one row, and may be empty in a ragged last batch."""
        return rows if self.group is None else rows.tensor_split(self.world_size)[self.rank]

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The network to call in training: gradients are averaged over the ranks in the backward pass."""
        if self.group is None:
            return model
        wrapped = DistributedDataParallel(_Learning(model), process_group=self.group, gradient_as_bucket_view=True)
        # After its first backward pass DDP lays gradients out anew, and where one lies decides in which order three
        # ranks or more add it up. So that a resumed training adds as one that was not stopped, that pass is no step.
        wrapped(None).backward()
        return wrapped

    def sum(self, tensor: Tensor) -> Tensor:
        """``tensor`` added up over the ranks, in place."""
        if self.group is not None:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def from_first(self, value: Any) -> Any:
        """What rank 0 gave, on every rank."""
        if self.group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, group=self.group, group_src=0)
        return box[0]

    def gathered(self, value: Any) -> list[Any]:
        """What every rank gave, in the order of ranks."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def seed(self, seed: int, epoch: int, device: torch.device) -> None:
        """Seed torch's generators for this rank: dropout must differ between ranks, initialization not.

        A single process keeps the generators that it initialized the network with.
        """
        if self.group is not None:
            text = f"{seed}/{epoch}/{self.rank}"
            seed_generators(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1, device)


class _Learning(nn.Module):
    """A network as DDP calls it.

    Args:
        network: the network.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor | None) -> Tensor:
        """The network's answer; to None 0, of which all gradients are 0, those of the last parameters first."""
        if images is None:
            return sum((0 * p.sum() for p in self.network.parameters()), torch.zeros(()))
        answer: Tensor = self.network(images)
        return answer


def backend(device_type: str) -> str:
    """NCCL for tensors on GPUs (``cuda``), gloo for those on CPUs."""
    return "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"


def is_lost_worker(error: BaseException) -> bool:
    """Whether ``error`` is what a collective raises when another rank is gone: a fault of the machine."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        hint in text for hint in ("gloo", "nccl", "connection closed by peer")
    )


@contextlib.contextmanager
def from_environment(device_type: str) -> Iterator[tuple[dist.ProcessGroup | None, torch.device]]:
    """Join the processes that ``torchrun`` started, if it started this one; yields the group and this rank's device.

    Args:
        device_type: ``cpu`` or ``cuda``; a rank's GPU is the one of its local rank.

    Raises:
        InvalidInputError: there are fewer GPUs here than ranks.
    """
    if not dist.is_torchelastic_launched():
        yield None, torch.device(device_type)
        return
    if device_type == "cuda" and (ranks := int(os.environ["LOCAL_WORLD_SIZE"])) > torch.cuda.device_count():
        raise InvalidInputError(
            f"--nproc-per-node: {ranks} is not allowed here; expected at most {torch.cuda.device_count()}, a GPU each"
        )
    device = _taken_device(device_type, int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend(device_type), timeout=_TIMEOUT)
    try:
        yield dist.group.WORLD, device
        _settle()
    finally:
        dist.destroy_process_group()


def _taken_device(device_type: str, local_rank: int) -> torch.device:
    """A rank's own device. A GPU is made the current one: else each rank would take memory of the first for itself."""
    if device_type != "cuda":
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _settle() -> None:
    """Before the process group is taken down: a rank that leaves early, or a live reference, can abort a process."""
    gc.collect()  # whatever still holds the group must go before it does
    dist.barrier()  # nobody hangs up while another is still talking


def run_workers(
    function: Callable[[dist.ProcessGroup, torch.device], Any], workers: int, device_type: str, threads: int
) -> None:
    """Run ``function(group, device)`` in so many new processes of this machine, which meet through a file.

    Nothing listens beyond the loopback interface. When one process ends with an error the others are ended too.
    They are forked from one new process that has imported torch, which takes longer than a short trial.

    Args:
        function: picklable.
        workers: number of processes.
        device_type: ``cpu`` (gloo) or ``cuda`` (NCCL; rank k gets GPU k).
        threads: CPU threads of each.

    Raises:
        torch.multiprocessing.ProcessException: a process failed or was killed.
    """
    imported = [__name__, getattr(function, "func", function).__module__]  # the module also of a functools.partial
    if device_type == "cpu":
        imported.append("torch._dynamo")  # DDP imports it, for seconds; it may ask CUDA, which no fork survives
    _start_forkserver(imported)
    with scratch_folder("gcsr-workers-") as folder:
        arguments = (function, workers, device_type, threads, str(folder / "meet"), dict(os.environ))
        # Daemons: an interrupt of this process alone ends them, too.
        start_processes(_worker, arguments, nprocs=workers, daemon=True, start_method=START_METHOD)


def _start_forkserver(imported: list[str]) -> None:
    """Start the process that others are forked from, and wait until it has imported what they need.

    It is deaf to Ctrl-C, which a terminal sends to all: it would die of it with a traceback in the middle of an import.
    """
    context = multiprocessing.get_context(START_METHOD)
    context.set_forkserver_preload(imported)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    safe = os.environ.get("PYTHONSAFEPATH", "")
    os.environ["PYTHONSAFEPATH"] = "1"  # a random.py in the current folder must not hide Python's
    try:
        forkserver.ensure_running()
    finally:
        os.environ["PYTHONSAFEPATH"] = safe  # empty is as if it were not set
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    ready = context.Process(target=int)  # one that misses nothing if we are interrupted meanwhile
    ready.start()
    ready.join()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)  # the main thread may wait in a collective


def _worker(
    rank: int,
    function: Callable[[dist.ProcessGroup, torch.device], Any],
    workers: int,
    device_type: str,
    threads: int,
    meet: str,
    environment: dict[str, str],
) -> None:
    os.environ.update(environment)  # the forking process has that of its own start
    threading.Thread(target=_end_with_parent, daemon=True, name="gcsr-parent-watch").start()
    loopback = "lo0" if os.uname().sysname == "Darwin" else "lo"
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback
    torch.set_num_threads(threads)
    device = _taken_device(device_type, rank)
    dist.init_process_group(
        backend(device_type), init_method=f"file://{meet}", rank=rank, world_size=workers, timeout=_TIMEOUT
    )
    try:
        assert dist.group.WORLD is not None
        function(dist.group.WORLD, device)
        _settle()
    finally:
        dist.destroy_process_group()
