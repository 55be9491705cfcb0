"""The console script ``gcsr``: parses, calls, and turns every error into one line and an exit code."""

import contextlib
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import click
from rich.console import Console
from rich.table import Table

from gcsr import CheckpointError, InvalidInputError, TrialConfig
from gcsr.data import data_root, prepare_arrays, verify_arrays
from gcsr.files import write_atomically
from tune.formats import FORMATS, Format
from tune.runs import EXECUTORS, Executor, RunOptions
from tune.schema import CONFIG_FIELDS
from tune.search_spec import OBJECTIVES, PRUNERS, SAMPLERS, Objective, Pruner, Sampler
from tune.spec import MAX_TRIALS, SweepSpec, load_spec, parse_assignment, parse_yaml, shipped_specs
from tune.store import Store, StoreError
from tune.sweep import run_sweep
from tune.tables import lam_text, method_text
from tune.tolerance import run_tolerance
from tune.train import LostWorkerError, TrainRun, run_train
from tune.trial import choose_device

__all__ = ["cli", "main"]

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

_data_option = click.option("--data", metavar="DIR", help="Folder of the data files [default: GCSR_DATA, or a cache].")
_device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")


class WorkFailedError(Exception):
    """The work was done and did not succeed: exit code 1, with this line."""


class InterruptedSweepError(Exception):
    """Ctrl-C: exit code 130, with this line."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="gcsr")
def cli() -> None:
    """Sweeps of strong L1/L2 regularization that still learns (gradient-coherent strong regularization)."""


def _config_options(command: Callable[..., None]) -> Callable[..., None]:
    """One option for each field of `TrialConfig`, by the field's name."""
    for name in reversed(CONFIG_FIELDS):
        default = TrialConfig.__dataclass_fields__[name].default
        shown = "" if default is None else f" [default: {default}]"
        flags = [f"--{name.replace('_', '-')}"] + ([f"--{name}"] if "_" in name else [])
        command = click.option(*flags, name, metavar="VALUE", help=f"{_FIELD_HELP[name]}{shown}")(command)
    return command


_FIELD_HELP = {
    "dataset": "digits, cifar10, cifar100 or svhn.",
    "model": "mlpK, alexnet, vgg11, vgg16 or vgg19.",
    "width": "Multiplies the width of every hidden layer.",
    "regularizer": "l1, l2, or none.",
    "mode": "none, baseline, ours (eq. 11) or ours_orig (eq. 8).",
    "lam": "λ, the regularization strength.",
    "mu": "μ of ours_orig [default there: 0.6].",
    "gamma": "γ of ours: free epochs, or auto [default there: 5].",
    "gamma_threshold": "Mean π that gamma auto waits for [default there: 0.6].",
    "seed": "Of initialization, order, augmentation and dropout.",
    "epochs": "Epochs [default: 60 on digits, else 300].",
    "batch_size": "Images a step.",
    "lr": "Learning rate.",
    "momentum": "Of SGD.",
    "lr_decay": "Factor on the learning rate …",
    "lr_decay_epochs": "… every so many epochs.",
    "dropout": "Drop probability [default: 0.5; 0 for mlpK].",
    "augment": "Flip and crop: true or false [default: true on CIFAR].",
    "precision": "fp32, tf32 or bf16.",
    "holdout": "Share of the training images kept to choose λ on.",
}


@cli.command("train")
@_config_options
@_data_option
@_device_option
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="CPU threads of a worker.")
@click.option("--workers", type=click.IntRange(1, 1024), default=1, show_default=True, help="Processes, with DDP.")
@click.option("--checkpoint", metavar="FILE", help="Save every epoch to FILE, and go on from it if it is there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def train_command(
    data: str | None,
    device: str,
    threads: int,
    workers: int,
    checkpoint: str | None,
    as_json: bool,
    **fields: str | None,
) -> None:
    """Train one trial; under torchrun, as one of the processes that it started."""
    given = {name: parse_yaml(text, name) for name, text in fields.items() if text is not None}
    run = TrainRun(
        config=TrialConfig(**given), data=data, device=device, threads=threads, checkpoint=checkpoint, as_json=as_json
    )
    try:
        run_train(run, workers)
    except KeyboardInterrupt:
        saved = f"resume with: {_command_line()}" if checkpoint else "nothing was saved (--checkpoint FILE would)"
        raise InterruptedSweepError(saved) from None
    except LostWorkerError as error:
        saved = f"; the same command goes on from {checkpoint}" if checkpoint else ""
        raise WorkFailedError(f"{error}{saved}") from None


def _run_options(command: Callable[..., None]) -> Callable[..., None]:
    """What ``sweep``, ``search`` and ``tolerance`` share."""
    options = (
        click.argument("spec"),
        click.option("--out", required=True, metavar="DIR", help="Store: a folder, or a URI such as s3://bucket/name."),
        click.option("--resume", is_flag=True, help="Run what DIR lacks."),
        click.option("--set", "assignments", multiple=True, metavar="FIELD=VALUE", help="Replace a field by YAML."),
        click.option(
            "--executor", type=click.Choice(EXECUTORS), default="ray", show_default=True, help="inline: no Ray."
        ),
        click.option("--address", metavar="ADDR", help="A running Ray cluster; none starts Ray on this machine."),
        click.option("--max-concurrent", type=click.IntRange(1), metavar="N", help="At most N trials at once."),
        click.option(
            "--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="CPU threads of a trial."
        ),
        click.option("--cohort", metavar="N", default="auto", show_default=True, help="Trials trained as one batch."),
        _data_option,
        _device_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


def _stop_option(default: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    shown = "on" if default else "off"
    text = f"End trials that cannot learn any more [default: {shown}]."
    return click.option("--stop-collapsed/--no-stop-collapsed", default=default, help=text)


def _loaded(
    spec: str,
    assignments: Sequence[str],
    executor: Executor,
    address: str | None,
    max_concurrent: int | None,
    **options: Any,
) -> tuple[SweepSpec, RunOptions]:
    """The spec and the options that a command line asks for.

    Raises:
        InvalidInputError: they are not allowed.
    """
    fields: dict[str, Any] = {}
    for text in assignments:
        name, value = parse_assignment(text)
        if name in fields:
            raise InvalidInputError(f"set: {name} is given twice; expected each field once")
        fields[name] = value
    if executor == "inline" and (address or max_concurrent):
        option = "address" if address else "max-concurrent"
        raise InvalidInputError(
            f"{option}: {address or max_concurrent!r} is not allowed; expected it with --executor ray"
        )
    choose_device(options["device"])
    data = options.pop("data")
    run_options = RunOptions(
        executor=executor,
        address=address,
        max_concurrent=max_concurrent,
        data=str(data_root(data).resolve()) if data or os.environ.get("GCSR_DATA") else None,
        cohort=_cohort(options.pop("cohort")),
        **options,
    )
    return load_spec(spec, fields), run_options


@contextlib.contextmanager
def _resumable(resume: bool) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        command = _command_line() + ("" if resume else " --resume")
        raise InterruptedSweepError(f"every ended trial is stored; resume with: {command}") from None
    except OSError as error:
        command = _command_line() + ("" if resume else " --resume")
        raise WorkFailedError(f"{_os_line(error)}; every ended trial is stored; resume with: {command}") from None


def _os_line(error: OSError) -> str:
    text = " ".join((error.strerror or str(error)).split())
    return text + (f": {error.filename}" if error.filename else "")


def _counted(statuses: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {status}" for status, n in sorted(statuses.items())) or "nothing to do"


def _report_failures(failures: Sequence[str], total: int, out: str) -> None:
    if failures:
        for line in failures[:20]:
            click.echo(line, err=True)
        raise WorkFailedError(
            f"{len(failures)} of {total} trials failed, listed above and in the column error of "
            f"{shlex.quote(out)}/trials; --resume tries them again"
        )


@cli.command("sweep")
@_run_options
@click.option(
    "--time-limit", metavar="TIME", help="As 9m or 1h30m: stop then, after the running epochs, to be resumed."
)
@_stop_option(False)
def sweep_command(spec: str, out: str, resume: bool, time_limit: str | None, **given: Any) -> None:
    """Run every trial of SPEC (a shipped name, see gcsr specs, or a YAML file)."""
    loaded, options = _loaded(spec, resume=resume, time_limit=_seconds(time_limit), **given)
    with _resumable(resume):
        outcome = run_sweep(loaded, Store(out), options)
    done = f"{outcome.total} trials, {outcome.ran} run now: {_counted(outcome.statuses)}"
    click.echo(f"{done}. Next: gcsr report {shlex.quote(out)}")
    if outcome.left:
        command = _command_line() + ("" if resume else " --resume")
        raise InterruptedSweepError(f"the time limit left {outcome.left} trials; resume with: {command}")
    _report_failures(outcome.failures, outcome.total, out)


def _seconds(text: str | None) -> float | None:
    """A time such as ``90s``, ``9m`` or ``1h30m`` in seconds."""
    if text is None:
        return None
    found = re.fullmatch(r"(?:(\d{1,4})h)?(?:(\d{1,5})m)?(?:(\d{1,7})s)?", text)
    seconds = 0
    if found is not None:
        hours, minutes, rest = (int(part or 0) for part in found.groups())
        seconds = 3600 * hours + 60 * minutes + rest
    if not seconds:
        raise InvalidInputError(f"time-limit: {text!r} is not allowed; expected a time as 90s, 9m or 1h30m")
    return float(seconds)


@cli.command("search")
@_run_options
@click.option("--trials", type=click.IntRange(1, MAX_TRIALS), required=True, metavar="N", help="Trainings in all.")
@click.option("--sampler", type=click.Choice(SAMPLERS), help="Of Optuna [default: the spec's, or tpe].")
@click.option(
    "--objective", "objectives", type=click.Choice(OBJECTIVES), multiple=True, help="Give two for a Pareto front."
)
@click.option("--pruner", type=click.Choice(PRUNERS), help="Give losing settings no more seeds [default: none].")
@click.option(
    "--window", type=click.IntRange(1, 10_000), metavar="N", help="Settings under way at once [default: slots + 1]."
)
@click.option("--storage", metavar="URL", help="Of Optuna: a database or a journal file [default: DIR/study.journal].")
@click.option("--refit", is_flag=True, help="Train the best settings again, without hold-out.")
@_stop_option(True)
def search_command(
    spec: str,
    out: str,
    resume: bool,
    trials: int,
    sampler: Sampler | None,
    objectives: tuple[Objective, ...],
    pruner: Pruner | None,
    window: int | None,
    storage: str | None,
    refit: bool,
    **given: Any,
) -> None:
    """Search λ, and μ or γ where the mode reads them, between the values of SPEC's grid."""
    from tune.search import run_search  # only here: Optuna takes a second to import

    loaded, options = _loaded(spec, resume=resume, **given)
    changed: dict[str, Any] = {"sampler": sampler} if sampler else {}
    if objectives:
        if len(set(objectives)) != len(objectives) or len(objectives) > 2:
            raise InvalidInputError(f"objective: {', '.join(objectives)} is not allowed; expected one or two different")
        changed["objectives"] = objectives
    if pruner:
        changed["pruner"] = pruner
    loaded = loaded.model_copy(update={"search": loaded.search.model_copy(update=changed)})
    with _resumable(resume):
        outcome = run_search(loaded, Store(out), options, trials=trials, window=window, storage=storage, refit=refit)
    for best in outcome.best:
        found = ", ".join(f"{name} {value:g}" for name, value in best.params.items())
        values = ", ".join(
            f"{name} {value:.4f}" for name, value in zip(loaded.search.objectives, best.values, strict=True)
        )
        click.echo(f"best of {best.label}: {found}: {values}")
    if outcome.saved_epochs:
        click.echo(f"{outcome.saved_epochs} epochs were not trained: their trials had collapsed")
    done = f"{outcome.total} trials, {sum(outcome.statuses.values())} run now: {_counted(outcome.statuses)}"
    click.echo(f"{done}. Next: gcsr report {shlex.quote(out)}")
    _report_failures(outcome.failures, outcome.total, out)


@cli.command("tolerance")
@_run_options
@click.option("--precision", type=float, default=0.1, show_default=True, metavar="R", help="Relative, of the level.")
@_stop_option(True)
def tolerance_command(spec: str, out: str, resume: bool, precision: float, **given: Any) -> None:
    """Find the strongest λ at which each method of SPEC still learns, by bisection between its grid's λ."""
    loaded, options = _loaded(spec, resume=resume, **given)
    with _resumable(resume):
        outcome = run_tolerance(loaded, Store(out), options, precision=precision)
    table = Table("network", "reg.", "mode", "learns up to λ", "collapses at λ", "trials", box=None)
    for level in outcome.levels:
        config = level.config
        method = method_text(config.mode, mu=config.mu, gamma=config.gamma)
        found = [lam_text(lam) for lam in (level.tolerance_lam, level.collapse_lam)]
        table.add_row(f"{config.model} on {config.dataset}", config.regularizer, method, *found, str(level.trials))
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table)
    tried = sum(level.trials for level in outcome.levels)
    click.echo(f"{tried} trials ({outcome.grid} in the grid), {outcome.ran} run now: {_counted(outcome.statuses)}")
    _report_failures(outcome.failures, tried, out)


@cli.command("report")
@click.argument("out", metavar="DIR")
@click.option("--format", "form", type=click.Choice(FORMATS), default="text", show_default=True)
@click.option("--out", "file", metavar="FILE", help="Write to FILE instead of the terminal.")
@click.option("--figures", metavar="FOLDER", help="Also write every figure there as SVG, PNG and PDF.")
@click.option("--watch", is_flag=True, help="Serve the HTML report on loopback, and refresh it while the sweep runs.")
@click.option("--port", type=click.IntRange(0, 65535), default=8777, show_default=True, help="Of --watch; 0 takes any.")
def report_command(out: str, form: Format, file: str | None, figures: str | None, watch: bool, port: int) -> None:
    """Read the verdict of the sweep in DIR; also while it runs."""
    from tune.reporting import Report  # only here: the libraries of statistics and figures take seconds to import

    store = Store(out)
    if not store.exists():
        raise StoreError(f"dir: {out!r} holds no sweep; expected the --out of gcsr sweep")
    if watch:
        from tune.watch import serve

        serve(store, out, port, on_ready=lambda url: click.echo(f"serving {url} (Ctrl-C ends it)", err=True))
        return
    report = Report(store, fallback_title=out)
    text = report.render(form, width=Console().width if sys.stdout.isatty() else 160)
    try:
        if figures is not None:
            for path in report.write_figures(Path(figures)):
                click.echo(f"wrote {path}", err=True)
        if file is None:
            click.echo(text, nl=False)
        else:
            with write_atomically(Path(file)) as target:
                target.write(text.encode())
    except OSError as error:
        raise InvalidInputError(f"out: {error.filename or file!r} cannot be written: {error.strerror}") from None
    if report.damaged:
        for line in report.damaged[:20]:
            click.echo(f"gcsr: {line}", err=True)
        raise InvalidInputError(
            f"trials: {len(report.damaged)} damaged file(s) skipped; gcsr sweep --resume runs them again"
        )


@cli.command("data")
@click.argument("name")
@_data_option
@click.option("--download", is_flag=True, help="Fetch what is missing from the data set's own site.")
@click.option("--check", is_flag=True, help="Also compare the file with its checksum, NAME.npz.sha256.")
def data_command(name: str, data: str | None, download: bool, check: bool) -> None:
    """Prepare a data set, check its shapes and labels, and say what is there."""
    arrays = prepare_arrays(name, data, download=download)
    checksum = verify_arrays(name, data) if check else None
    where = "inside scikit-learn" if name == "digits" else str(data_root(data))
    click.echo(f"{name}: {where}")
    for key, array in arrays.items():
        click.echo(f"  {key}: {array.dtype} {list(array.shape)}")
    if checksum is not None:
        click.echo(f"  sha256: {checksum}")


@cli.command("specs")
@click.argument("name", required=False)
def specs_command(name: str | None) -> None:
    """List the shipped specs; with NAME, print that spec."""
    shipped = shipped_specs()
    if name is not None:
        if name not in shipped:
            raise InvalidInputError(f"name: {name!r} is not allowed; expected one of {', '.join(shipped)}")
        click.echo(shipped[name], nl=False)
        return
    table = Table.grid(padding=(0, 2))
    for each in shipped:
        spec = load_spec(each)
        table.add_row(each, f"{len(spec.trials())} trials", spec.description)
    Console(highlight=False).print(table)


def _cohort(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 1024):
        raise InvalidInputError(f"cohort: {text!r} is not allowed; expected auto, or an integer from 1 to 1024")
    return int(text)


def _command_line() -> str:
    return shlex.join(["gcsr", *sys.argv[1:]])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 1 failed, 2 bad input, 130 interrupted)."""
    try:
        cli.main(None if arguments is None else list(arguments), prog_name="gcsr", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return BAD_INPUT
    except click.ClickException as error:
        return _end(BAD_INPUT, " ".join(error.format_message().split()))
    except (InvalidInputError, CheckpointError) as error:
        return _end(BAD_INPUT, str(error))
    except WorkFailedError as error:
        return _end(FAILED, str(error))
    except InterruptedSweepError as error:
        return _end(INTERRUPTED, f"interrupted; {error}")
    except (click.Abort, KeyboardInterrupt):
        return _end(INTERRUPTED, "interrupted")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # head closed the pipe: not our failure
        return DONE
    except OSError as error:
        return _end(FAILED, _os_line(error))
    return DONE


def _end(code: int, line: str) -> int:
    click.echo(f"gcsr: {line}", err=True)
    return code


def run() -> None:
    """Entry point of the console script."""
    signal.signal(signal.SIGTERM, _interrupt)  # batch systems end a job with it: as Ctrl-C, with the line that resumes
    sys.exit(main())


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run()
