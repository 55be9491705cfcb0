"""How to run trials, as people ask for it."""

from dataclasses import dataclass
from typing import Literal, get_args

from gcsr import ConfigError, InvalidInputError

__all__ = ["EXECUTORS", "ExecutorName", "RunOptions"]

ExecutorName = Literal["ray", "inline"]
EXECUTORS: tuple[ExecutorName, ...] = get_args(ExecutorName)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """How to run trials.

    ``stop_collapsed`` may end a trial early; ``device``, ``threads`` and ``cohort`` change the rounding of what it
    measures. Nothing else changes results.

    Attributes:
        resume: go on with a store that is there already.
        executor: ``ray``, or ``inline`` for this process.
        address: of a running Ray cluster; None starts Ray on this machine.
        wait: seconds for a cluster that is too small yet; None: see `tune.capacity.plan_on_cluster`.
        max_concurrent: at most so many units of trials at once; None for all cores or GPUs.
        data: data root, a folder or a URI; None for the default.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: CPU threads of a trial; ``auto``: one under Ray, `tune.trial.threads_for` in this process.
        gpu_share: of a GPU, that a worker takes.
        tensorboard: also write each trial's curves as a TensorBoard run.
        stop_collapsed: end a trial that cannot learn any more (`gcsr.collapse`).
        save_networks: keep the network of each trial that is trained now and finishes, in ``DIR/networks``.
        time_limit: seconds after which trials stop at the end of their running epoch; None for no limit.
        cohort: how many trials one process trains as one batch at most; ``auto``: see `tune.cutting.is_stacked`.
        trials_per_gpu: how many other trials one process interleaves at most; ``auto``: see
            `gcsr.interleaving.Interleaved`.

    Raises:
        InvalidInputError: a value is not allowed, or not beside another.
    """

    resume: bool = False
    executor: ExecutorName = "ray"
    address: str | None = None
    wait: float | None = None
    max_concurrent: int | None = None
    data: str | None = None
    device: str = "auto"
    threads: int | Literal["auto"] = "auto"
    gpu_share: float = 1.0
    tensorboard: bool = False
    stop_collapsed: bool = False
    save_networks: bool = False
    time_limit: float | None = None
    cohort: int | Literal["auto"] = "auto"
    trials_per_gpu: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise ConfigError("executor", self.executor, "one of " + ", ".join(EXECUTORS))
        for name in ("threads", "cohort", "trials_per_gpu"):
            if getattr(self, name) != "auto" and not _is_count(getattr(self, name)):
                raise ConfigError(name, getattr(self, name), "auto, or an integer of at least 1")
        if self.max_concurrent is not None and not _is_count(self.max_concurrent):
            raise ConfigError("max_concurrent", self.max_concurrent, "an integer of at least 1")
        if not 0.01 <= self.gpu_share <= 1:
            raise ConfigError("gpu_share", self.gpu_share, "a number from 0.01 to 1")
        if self.time_limit is not None and self.time_limit <= 0:
            raise ConfigError("time_limit", self.time_limit, "a number of seconds above 0")
        if self.time_limit is not None and self.cohort not in ("auto", 1):
            raise InvalidInputError(
                f"cohort: {self.cohort} is not allowed with a time limit, as a cohort saves nothing on its way; "
                "expected auto or 1"
            )
        if self.executor == "inline":
            for name in ("address", "max_concurrent", "wait"):
                if value := getattr(self, name):
                    raise InvalidInputError(f"{name}: {value!r} is not allowed; expected it with --executor ray")


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1
