"""The command line's options that several commands share, and what they mean."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from gcsr import InvalidInputError, TrialConfig
from gcsr.arrays import data_root
from tune.passwords import refuse_password
from tune.run_options import EXECUTORS, RunOptions
from tune.schema import CONFIG_FIELDS
from tune.search_spec import Objective, Pruner, Sampler
from tune.spec import SweepSpec, load_spec, parse_assignment

__all__ = [
    "LOCAL_PATH",
    "LOCATION",
    "TIME",
    "Asked",
    "asked_for",
    "config_options",
    "data_location",
    "data_option",
    "device_option",
    "run_options",
    "searched",
    "stop_option",
    "threads_option",
]


class _Time(click.ParamType[float]):
    """A time such as ``90s``, ``9m`` or ``1h30m``, in seconds."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(?:(\d{1,4})h)?(?:(\d{1,5})m)?(?:(\d{1,7})s)?", value)
        seconds = 0
        if found is not None:
            hours, minutes, rest = (int(part or 0) for part in found.groups())
            seconds = 3600 * hours + 60 * minutes + rest
        if not seconds:
            raise InvalidInputError(
                f"{_named(param)}: {value!r} is not allowed; expected a time such as 90s, 9m or 1h30m"
            )
        return float(seconds)


class _Count(click.ParamType[int | Literal["auto"]]):
    """How many, or ``auto``."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | Literal["auto"]:
        if value == "auto" or isinstance(value, int):
            return value  # type: ignore[no-any-return]
        if not (value.isascii() and value.isdecimal() and 1 <= int(value) <= 1024):
            raise InvalidInputError(
                f"{_named(param)}: {value!r} is not allowed; expected auto, or an integer from 1 to 1024"
            )
        return int(value)


class _Location(click.ParamType[str]):
    """A path or a URI."""

    name = "DIR"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        refuse_password(_named(param), value)
        if not value:
            raise InvalidInputError(
                f"{_named(param)}: '' is not allowed; expected a folder, or a URI such as s3://bucket/name"
            )
        return _expanded(str(value), param)


class _Local(click.ParamType[Path]):
    """A path on this machine."""

    name = "PATH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if not value or "://" in str(value):
            shown = repr(str(value)[:80])
            raise InvalidInputError(f"{_named(param)}: {shown} is not allowed; expected a path on this machine")
        return Path(_expanded(str(value), param))


class _Assignment(click.ParamType[tuple[str, Any]]):
    name = "FIELD=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        return value if isinstance(value, tuple) else parse_assignment(value)


def _expanded(value: str, param: click.Parameter | None) -> str:
    """With the home folder in place of a leading ``~``, which shells leave in ``--out=~/runs``."""
    path = os.path.expanduser(value)
    if path.startswith("~"):
        user = path[1:].partition("/")[0]
        raise InvalidInputError(f"{_named(param)}: {value!r:.80} is not allowed; there is no user {user:.40}")
    return path


def _named(param: click.Parameter | None) -> str:
    if isinstance(param, click.Argument) and param.metavar:
        return param.metavar.lower()
    return "value" if param is None or param.name is None else param.name


TIME, LOCATION, LOCAL_PATH = _Time(), _Location(), _Local()

data_option = click.option(
    "--data", type=LOCATION, metavar="DIR", help="Folder or URI of the data files [default: GCSR_DATA, or a cache]."
)
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="auto: cuda if any."
)


def _count_option(name: str, text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(name, type=_Count(), default="auto", show_default=True, help=text)


threads_option = _count_option(
    "--threads",
    "CPU threads of a worker; auto: all, for a convolutional network that one process trains alone, else one.",
)


def config_options(command: Callable[..., None]) -> Callable[..., None]:
    """One option for each field of `TrialConfig`, by the field's name."""
    for name in reversed(CONFIG_FIELDS):
        default = TrialConfig.__dataclass_fields__[name].default
        shown = "" if default is None else f" [default: {default}]"
        flags = [f"--{name.replace('_', '-')}"] + ([f"--{name}"] if "_" in name else [])
        command = click.option(*flags, name, metavar="VALUE", help=f"{_FIELD_HELP[name]}{shown}")(command)
    return command


_FIELD_HELP = {
    "dataset": "digits, cifar10, cifar100, svhn, or NAME.npz of your own.",
    "model": "mlpK, alexnet, vgg11, vgg16, vgg19, or MODULE:FUNCTION, which builds your own.",
    "width": "Multiplies the width of every hidden layer.",
    "regularizer": "l1, l2, or none.",
    "mode": "none, baseline, ours (eq. 11) or ours_orig (eq. 8).",
    "lam": "λ, the regularization strength.",
    "mu": "μ of ours_orig [default there: 0.6].",
    "gamma": "γ of ours: epochs before λ applies, or auto [default there: 5].",
    "gamma_threshold": "Mean π that gamma auto waits for [default there: 0.6].",
    "seed": "Seed of initialization, order, augmentation and dropout.",
    "epochs": "Epochs [default: 60 on digits, else 300].",
    "batch_size": "Images per step.",
    "lr": "Learning rate.",
    "momentum": "Momentum of SGD.",
    "lr_decay": "Factor on the learning rate …",
    "lr_decay_epochs": "… every so many epochs.",
    "dropout": "Drop probability [default: 0.5; 0 for mlpK].",
    "augment": "Flip and crop: true or false [default: true on CIFAR].",
    "inputs": "standardized (mean 0 and deviation 1), or unit (0 to 1).",
    "initialization": "torch, or vgg [default: vgg for vggN, as torchvision; else torch].",
    "precision": "fp32, tf32 or bf16.",
    "holdout": "Share of the training images held out to choose λ on.",
}


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """What ``sweep``, ``search`` and ``tolerance`` share; `asked_for` takes them."""
    options = (
        click.argument("spec"),
        click.option(
            "--out",
            required=True,
            type=LOCATION,
            metavar="DIR",
            help="Store: a folder, or a URI such as s3://bucket/name.",
        ),
        click.option("--resume", is_flag=True, help="Go on with the store in DIR: run what it lacks."),
        click.option(
            "--set",
            "assignments",
            multiple=True,
            type=_Assignment(),
            help="Override a field of SPEC; VALUE is YAML. May be given for several fields.",
        ),
        click.option(
            "--executor",
            type=click.Choice(EXECUTORS),
            default="ray",
            show_default=True,
            help="inline: one after the other in this process, without Ray.",
        ),
        click.option(
            "--address", metavar="ADDR", help="A running Ray cluster; without it, Ray is started on this machine."
        ),
        click.option(
            "--wait",
            type=TIME,
            help="How long to wait for a cluster that is still too small [default: 30m if it grows by itself].",
        ),
        click.option(
            "--max-concurrent",
            type=click.IntRange(1),
            metavar="N",
            help="Run at most N at once: trials, cohorts, or GPUs with interleaved trials.",
        ),
        threads_option,
        click.option(
            "--gpu-share",
            type=float,
            default=1.0,
            show_default=True,
            metavar="SHARE",
            help="The share of a GPU that a worker takes.",
        ),
        _count_option("--cohort", "Trials trained as one batch, with no checkpoints."),
        _count_option("--trials-per-gpu", "The most trials that a process interleaves."),
        click.option(
            "--save-networks",
            is_flag=True,
            help="Also write each trained network to DIR/networks, for gcsr.load_network.",
        ),
        click.option("--tensorboard", is_flag=True, help="Also write each trial's curves under DIR/tensorboard."),
        data_option,
        device_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


def stop_option(default: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """``--stop-collapsed``, on or off by default."""
    shown = "on" if default else "off"
    text = f"End trials that cannot learn any more [default: {shown}]."
    return click.option("--stop-collapsed/--no-stop-collapsed", default=default, help=text)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a command line asks for: which trials, and how to run them."""

    spec: SweepSpec
    options: RunOptions


def asked_for(spec: str, assignments: Sequence[tuple[str, Any]], data: str | None, **options: Any) -> Asked:
    """The spec and the run options of a command line; nothing is looked for on this machine but the spec's file.

    Raises:
        InvalidInputError: they are not allowed.
    """
    fields: dict[str, Any] = {}
    for name, value in assignments:
        if name in fields:
            raise InvalidInputError(f"set: {name} is given twice; expected each field once")
        fields[name] = value
    run = RunOptions(data=data_location(data), **options)
    return Asked(load_spec(spec, fields), run)


def searched(
    spec: SweepSpec, sampler: Sampler | None, objectives: Sequence[Objective], pruner: Pruner | None
) -> SweepSpec:
    """The spec with what the command line says of its search.

    Raises:
        InvalidInputError: it is not allowed.
    """
    given = {"sampler": sampler, "objectives": tuple(objectives), "pruner": pruner}
    changed = spec.search.replace(**{name: value for name, value in given.items() if value})
    return spec.model_copy(update={"search": changed})


def data_location(given: str | None) -> str | None:
    """The data root that a command line asks for: a URI, an absolute folder, or None for each machine's default.

    Raises:
        InvalidInputError: it is a URL with a password.
    """
    location = given or os.environ.get("GCSR_DATA")
    if not location:
        return None
    refuse_password("data", location)
    return location if "://" in location else os.path.abspath(data_root(location))
