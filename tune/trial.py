"""One trial of a sweep: from its config to the rows of the store. Every executor runs this."""

import contextlib
import functools
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
import torch.distributed as dist

from gcsr import CheckpointError, Dataset, InvalidInputError, TrainedNetwork, TrialConfig, load_dataset
from gcsr.checkpoint import Checkpointer
from gcsr.errors import OutOfTimeError
from gcsr.interleaving import Interleaved, Steps
from gcsr.names import is_mlp
from gcsr.parallel import Workers, is_lost_worker
from gcsr.precision import is_emulated, leaves_tensor_cores_idle
from gcsr.trainer import training
from tune.filesystem import one_line
from tune.job import Outcome, SweepJob, checkpoint_name, network_name
from tune.node_data import UnfitNodeError, check_digest, local_root
from tune.schema import epoch_rows, failed_row, trial_row
from tune.store import Store
from tune.terminal import complain

__all__ = [
    "StoredCheckpoint",
    "blame_machine",
    "check_digests",
    "choose_device",
    "dataset_of",
    "device_of",
    "failed_outcome",
    "is_machines_fault",
    "network_saver",
    "run_trials",
    "threads_for",
    "trial_steps",
    "warn_of_precision",
]

_CHECKPOINT_SHARE = 0.05  # of a trial's time: a thousand GPUs share one store
# CUDA's numbers for a trial's own faults: memory is full, where graphs and libraries take it without torch's allocator;
# a step cannot be captured.
_OWN_FAULTS = {2, *range(900, 909)}


def choose_device(name: str) -> torch.device:
    """``auto`` is the GPU if there is one, which is asked for without taking memory of it: this process may only start
    those that train.

    Raises:
        InvalidInputError: the device is not there.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    with contextlib.suppress(RuntimeError):  # as torch calls what is no device
        device = torch.device(name)
        if device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < gpus):
            return device
    raise InvalidInputError(f"device: {name!r} is not allowed here; expected auto, cpu or an existing cuda")


def device_of(job: SweepJob) -> torch.device:
    """The job's device, here.

    Raises:
        UnfitNodeError: this machine has none, or has lost it.
    """
    try:
        return choose_device(job.device)
    except InvalidInputError as error:
        raise UnfitNodeError(str(error)) from None


def threads_for(config: TrialConfig, device: torch.device, asked: int | Literal["auto"], available: int) -> int:
    """How many CPU threads a process that trains one trial at a time takes.

    With ``auto`` a convolutional network on a CPU gets all: an epoch of AlexNet takes 0.6 of the time on two
    (``gcsr train --threads``). A plain network is slower on two than on one, and a GPU waits for one thread only.

    Args:
        config: the trial.
        device: where it is trained.
        asked: a number, which is taken, or ``auto``.
        available: what this process may take, as `torch.get_num_threads` says at its start.
    """
    if asked != "auto":
        return asked
    return 1 if device.type != "cpu" or is_mlp(config.model) else max(1, available)


def warn_of_precision(configs: Sequence[TrialConfig], device: torch.device) -> None:
    """Say on stderr, before a long wait, that the trials' precision makes them slower here."""
    for precision in sorted({config.precision for config in configs}):
        if is_emulated(precision, device):
            complain(f"gcsr: precision: {precision} is emulated on this processor, several times slower than fp32")
    of_convolutions = {config.precision for config in configs if not is_mlp(config.model)}
    if any(leaves_tensor_cores_idle(precision, device) for precision in of_convolutions):
        complain("gcsr: precision: fp32 takes this GPU several times as long as tf32, torch's default for convolutions")


def run_trials(configs: Sequence[TrialConfig], job: SweepJob) -> Iterator[Outcome]:
    """Train in this process, as many at once as the job says; each outcome as it comes.

    An exception becomes a ``failed`` row: a fault of the trial's own must not look like a fault of the machine, as only
    the latter is worth another try. A trial that the deadline overtook has no outcome.

    Args:
        configs: trials in the same precision.
        job: their sweep's job.

    Raises:
        UnfitNodeError: this machine's GPU failed or is not there; no trial can go on in this process.
    """
    device = device_of(job)
    trainings = [functools.partial(trial_steps, config, job, device) for config in configs]
    try:
        for ended in Interleaved(trainings, device, configs[0].precision, job.trials_per_gpu):
            if isinstance(ended.result, Outcome):
                yield ended.result
            elif not isinstance(ended.result, OutOfTimeError):
                blame_machine(ended.result, device)
                yield failed_outcome(configs[ended.place], job, ended.result)
    except torch.AcceleratorError as error:  # between their turns, where their pace is measured
        blame_machine(error, device)
        raise


def trial_steps(
    config: TrialConfig, job: SweepJob, device: torch.device, group: dist.ProcessGroup | None = None
) -> Steps[Outcome]:
    """Train, going on from the trial's checkpoint if there is one.

    Args:
        config: the trial.
        job: its sweep's job.
        device: this process's.
        group: the processes that train this trial together.

    Raises:
        OutOfTimeError: the job's deadline has passed; the checkpoint holds what was done.
    """
    if Workers.of(group).from_first(job.out_of_time()):  # ranks look at clocks of their own, at different moments
        raise OutOfTimeError("not begun")
    storage = StoredCheckpoint(_store(job.store), config.trial_id)
    data = dataset_of(config, job.data, device)
    checkpointer = Checkpointer(
        storage, min_seconds=job.checkpoint_seconds, max_share=_CHECKPOINT_SHARE, deadline=job.deadline
    )
    trained = functools.partial(
        training,
        config,
        data,
        checkpointer=checkpointer,
        group=group,
        stop_collapsed=job.stop_collapsed,
        on_network=network_saver(job),
    )
    try:
        result = yield from trained()
    except CheckpointError:  # it only ever saved time: without it the trial gives the same result
        if group is None or dist.get_rank(group) == 0:
            storage.remove()
        result = yield from trained()
    return Outcome(trial_row(config, job.experiment, result), epoch_rows(config, result))


def is_machines_fault(error: BaseException) -> bool:
    """Whether what a training raised says that its machine is gone, or cannot serve."""
    # Any other error of a GPU stays: whatever this process does with it later raises it again.
    if isinstance(error, torch.AcceleratorError):
        return getattr(error, "error_code", None) not in _OWN_FAULTS
    return isinstance(error, UnfitNodeError) or is_lost_worker(error)


def blame_machine(error: Exception, device: torch.device) -> None:
    """Raise `UnfitNodeError` if what a training on ``device`` raised is no fault of its own."""
    if is_machines_fault(error) or _has_failed(device):
        raise UnfitNodeError(f"device: {device} failed: {one_line(error)}") from None


def _has_failed(device: torch.device) -> bool:
    """Whether a GPU's error has stayed: Triton, cuBLAS and cuDNN raise it as they raise any other."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except torch.AcceleratorError as error:
        return is_machines_fault(error)
    return False


def failed_outcome(config: TrialConfig, job: SweepJob, error: BaseException) -> Outcome:
    """The outcome of a trial that raised by its own fault."""
    frames = traceback.extract_tb(error.__traceback__)
    known = isinstance(error, InvalidInputError) or not frames
    place = "" if known else f" ({frames[-1].name}, line {frames[-1].lineno})"
    text = " ".join(str(error).split())[:300]
    return Outcome(failed_row(config, job.experiment, f"{type(error).__name__}: {text}{place}"), [])


@functools.lru_cache(maxsize=2)
def _store(location: str) -> Store:
    """Opened once a process: a remote one remembers which folders are there."""
    return Store(location)


def network_saver(job: SweepJob) -> Callable[[TrainedNetwork], None] | None:
    """Writes a trained network into the job's store; None where none are to be kept.

    It comes before the trial's row: a trial that ended has its network.
    """
    if not job.save_networks:
        return None
    store = _store(job.store)

    def save(network: TrainedNetwork) -> None:
        fields = network.config.to_dict() | {"trial_id": network.config.trial_id}
        store.write_bytes(network_name(fields), network.to_bytes())

    return save


class StoredCheckpoint:
    """A trial's checkpoint inside the store, so that any node that sees the store can go on with the trial."""

    def __init__(self, store: Store, trial_id: str) -> None:
        self._store = store
        self._name = checkpoint_name(trial_id)

    def read(self) -> bytes | None:
        return self._store.read_bytes(self._name)

    def write(self, data: bytes) -> None:
        try:
            self._store.write_bytes(self._name, data)
        except OSError as error:  # it only saves time: without it the trial gives the same result
            complain(f"gcsr: the checkpoint {self} cannot be written: {one_line(error)}")

    def remove(self) -> None:
        self._store.remove(self._name)

    def __str__(self) -> str:
        return self._store.path(self._name)


def check_digests(configs: Sequence[TrialConfig], job: SweepJob) -> None:
    """Raise unless this machine has the trials' data as the sweep's nodes agreed on it.

    Raises:
        UnfitNodeError: it has not.
    """
    for name in sorted({config.dataset for config in configs} & job.digests.keys()):
        check_digest(job.data, name, job.digests[name])


def dataset_of(config: TrialConfig, root: str | None, device: torch.device) -> Dataset:
    """The trial's data set on the device, from a data root that may be a URI; loaded once a process."""
    return _dataset(config.dataset, config.holdout, config.inputs, root, str(device))


@functools.lru_cache(maxsize=4)
def _dataset(name: str, holdout: float, inputs: str, root: str | None, device: str) -> Dataset:
    """Loaded once a process: a reused worker trains many trials on the same tensors."""
    return load_dataset(name, holdout=holdout, inputs=inputs, root=local_root(root, name), device=device)
