"""One trial from the command line: in this process, in several of this machine, or as one of torchrun's."""

import contextlib
import functools
import json
import logging
import multiprocessing
import os
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from rich.table import Table
from torch.multiprocessing.spawn import ProcessException

from gcsr import EpochRecord, InvalidInputError, TrainedNetwork, TrialConfig, TrialResult, train
from gcsr.archive import GPU_FAULTS
from gcsr.checkpoint import Checkpointer, FileStorage
from gcsr.parallel import START_METHOD, from_environment, is_lost_worker, run_workers
from tune.filesystem import one_line
from tune.networks import check_networks, to_be_built
from tune.node_data import local_arrays
from tune.terminal import Terminal, complain, make_forgiving, say
from tune.trial import choose_device, dataset_of, threads_for, warn_of_precision
from tune.words import NONE

__all__ = ["FailedTrainingError", "TrainRun", "run_train"]


class FailedTrainingError(Exception):
    """A worker failed or was killed, and the others were ended; or the GPU failed, or was full."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRun:
    """What ``gcsr train`` was asked for.

    Attributes:
        config: the trial.
        data: data root, a folder or a URI; None for the default.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: CPU threads of a worker; see `tune.trial.threads_for`.
        checkpoint: file to save to and go on from; None for none.
        save: file for the trained network; None for none.
        as_json: print one JSON object, and no progress.
    """

    config: TrialConfig
    data: str | None
    device: str
    threads: int | Literal["auto"]
    checkpoint: Path | None
    save: Path | None
    as_json: bool


def run_train(run: TrainRun, workers: int) -> None:
    """Train and print the result.

    Raises:
        InvalidInputError: what was asked for is not possible here; nothing was trained.
        FailedTrainingError: it ended before its time, and not by what was asked for.
    """
    if workers > run.config.batch_size:
        most = f"{run.config.batch_size}, the batch_size: an image each"
        raise InvalidInputError(f"workers: {workers} is not allowed; expected at most {most}")
    device = choose_device(run.device)
    warn_of_precision([run.config], device)
    threads = threads_for(run.config, device, run.threads, torch.get_num_threads() // workers)
    for option, path in (("checkpoint", run.checkpoint), ("save", run.save)):
        if path is not None:
            _check_file(option, path)
    if run.save is not None and run.checkpoint is not None and _is_same(run.save, run.checkpoint):
        raise InvalidInputError(f"save: {str(run.save)!r} is not allowed; expected another file than --checkpoint")
    own = to_be_built([run.config])
    if workers > 1 or own:  # what is not there, or no network, is one clear line, not one a worker
        with _for_the_result(run):
            check_networks(own, local_arrays(run.data, run.config.dataset), workers)
    if workers > 1:
        if dist.is_torchelastic_launched():
            raise InvalidInputError(f"workers: {workers} is not allowed under torchrun; expected its --nproc-per-node")
        if device.type == "cuda" and workers > torch.cuda.device_count():
            raise InvalidInputError(
                f"workers: {workers} is not allowed here; expected at most {torch.cuda.device_count()}, a GPU each"
            )
        logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # that it ends the others is no news
        refusals = multiprocessing.get_context(START_METHOD).SimpleQueue()
        try:
            run_workers(functools.partial(_work, run, refusals), workers, device.type, threads)
        except ProcessException as error:
            if not refusals.empty():
                raise refusals.get() from None
            killed = getattr(error, "signal_name", None)
            how = f"was killed ({killed})" if killed else f"failed: {str(error).strip().splitlines()[-1]}"
            raise FailedTrainingError(f"worker {error.error_index} of {workers} {how}") from None
        return
    torch.set_num_threads(threads)
    try:
        with from_environment(device.type) as (group, own_device):
            _train_and_print(run, group, own_device)
    except GPU_FAULTS as error:
        raise FailedTrainingError(f"device: {device} failed: {one_line(error)}") from None
    except Exception as error:
        if dist.is_torchelastic_launched() and is_lost_worker(error):
            raise FailedTrainingError("another worker was lost") from None
        raise


def _is_same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _check_file(option: str, path: Path) -> None:
    """Raise before anything is trained if no file could be written there, or something else is there.

    Raises:
        InvalidInputError: none could.
    """
    if path.is_dir():
        raise InvalidInputError(f"{option}: {str(path)!r} is a folder; expected a file, which need not be there")
    if path.exists() and not path.is_file():
        raise InvalidInputError(f"{option}: {str(path)!r} is no regular file; expected one, which need not be there")
    folder = Path(os.path.realpath(path)).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InvalidInputError(f"{option}: {str(path)!r} cannot be written: {error.strerror}") from None


def _work(
    run: TrainRun, refusals: "SimpleQueue[InvalidInputError]", group: dist.ProcessGroup, device: torch.device
) -> None:
    make_forgiving(sys.stdout)
    try:
        _train_and_print(run, group, device)
    except InvalidInputError as error:
        refusals.put(error)  # torch passes on no more than a traceback's text
        raise


def _train_and_print(run: TrainRun, group: dist.ProcessGroup | None, device: torch.device) -> None:
    speaks = group is None or dist.get_rank(group) == 0
    console = Terminal(stderr=True, highlight=False)
    epochs: int = run.config.epochs  # type: ignore[assignment]

    def show(record: EpochRecord) -> None:
        if speaks and not run.as_json and (console.is_terminal or record.epoch % max(1, epochs // 10) == 0):
            console.print(
                f"epoch {record.epoch + 1}/{epochs}: loss {record.train_loss:.4f}, "
                f"test accuracy {record.test_accuracy:.4f}, π {record.pi:.3f}, imposed {record.imposed_fraction:.0%}, "
                f"sparsity {record.sparsity:.3f}, {record.seconds:.2f} s",
                markup=False,
                soft_wrap=True,  # a line for each epoch, also in a file
            )

    checkpointer = Checkpointer(FileStorage(run.checkpoint)) if run.checkpoint else None
    data = dataset_of(run.config, run.data, device)
    keep = None if run.save is None else functools.partial(_keep, FileStorage(run.save))
    with _for_the_result(run):
        result = train(run.config, data, checkpointer=checkpointer, on_epoch=show, group=group, on_network=keep)
    if not speaks:
        return
    if run.save is not None and result.status != "finished":
        complain(f"gcsr: {run.save} was not written, as the trial {result.status}")
    measured = _measured(result)
    if run.as_json:
        say(json.dumps(run.config.to_dict() | measured))
        return
    table = Table.grid(padding=(0, 2))
    for name, value in measured.items():
        table.add_row(name, NONE if value is None else f"{value:.6g}" if isinstance(value, float) else str(value))
    Terminal(highlight=False).print(table)


def _keep(storage: FileStorage, network: TrainedNetwork) -> None:
    storage.write(network.to_bytes())


def _for_the_result(run: TrainRun) -> contextlib.AbstractContextManager[object]:
    """Keep stdout for the JSON object: what a user's own network prints goes to stderr."""
    return contextlib.redirect_stdout(sys.stderr) if run.as_json else contextlib.nullcontext()


def _measured(result: TrialResult) -> dict[str, Any]:
    names = [name for name in TrialResult.__dataclass_fields__ if name != "epochs"]
    return {name: getattr(result, name) for name in names}
