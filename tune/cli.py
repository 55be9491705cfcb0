"""The commands of ``gcsr`` that run where they are called; `cluster.cli` adds those for jobs on a cluster."""

import contextlib
import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress, TextColumn
from rich.table import Table

from gcsr import ConfigError, InvalidInputError, TrialConfig
from gcsr.arrays import data_root, prepare_arrays, verify_arrays
from gcsr.files import write_atomically
from tune.endings import (
    InterruptedRunError,
    WorkFailedError,
    command_line,
    main_of,
    os_line,
    resumable,
    resuming,
    run_as_program,
)
from tune.folder import StoreError, permitted
from tune.formats import FORMATS, Format
from tune.merge import merge_stores
from tune.options import (
    LOCAL_PATH,
    LOCATION,
    TIME,
    asked_for,
    config_options,
    data_location,
    data_option,
    device_option,
    run_options,
    searched,
    stop_option,
    threads_option,
)
from tune.preview import preview
from tune.schema import FAMILY_FIELDS
from tune.search_spec import OBJECTIVES, PRUNERS, SAMPLERS, Objective, Pruner, Sampler
from tune.spec import MAX_TRIALS, load_spec, parse_yaml, shipped_specs
from tune.store import Store
from tune.sweep import preview_sweep, run_sweep
from tune.terminal import Terminal, columns, complain, say
from tune.tolerance import run_tolerance
from tune.words import counted, float_text, method_text, network_texts

__all__ = ["cli", "main"]


_START_SECONDS = 60  # a time limit below may be over before a trial could begin


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="gcsr")
def cli() -> None:
    """Sweeps of strong L1/L2 regularization that still learns (gradient-coherent strong regularization)."""


@cli.command("train", short_help="Train one trial.")
@config_options
@data_option
@device_option
@threads_option
@click.option("--workers", type=click.IntRange(1, 1024), default=1, show_default=True, help="Processes, with DDP.")
@click.option(
    "--checkpoint", type=LOCAL_PATH, metavar="FILE", help="Save every epoch to FILE, and go on from it if it is there."
)
@click.option(
    "--save", type=LOCAL_PATH, metavar="FILE", help="Write the trained network to FILE, for gcsr.load_network."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def train_command(
    data: str | None,
    device: str,
    threads: int,
    workers: int,
    checkpoint: Path | None,
    save: Path | None,
    as_json: bool,
    **fields: str | None,
) -> None:
    """Train one trial; under torchrun, as one of the processes that it started."""
    config = TrialConfig(**{name: _field(name, text) for name, text in fields.items() if text is not None})
    from tune.train import FailedTrainingError, TrainRun, run_train  # only here: torch takes seconds to import

    run = TrainRun(
        config=config,
        data=data_location(data),
        device=device,
        threads=threads,
        checkpoint=checkpoint,
        save=save,
        as_json=as_json,
    )
    try:
        run_train(run, workers)
    except KeyboardInterrupt:
        saved = f"resume with: {command_line()}" if checkpoint else "nothing was saved (--checkpoint FILE would)"
        raise InterruptedRunError(saved) from None
    except FailedTrainingError as error:
        saved = f"; the same command goes on from {checkpoint}" if checkpoint and checkpoint.exists() else ""
        raise WorkFailedError(f"{error}{saved}") from None


def _field(name: str, text: str) -> Any:
    if not text.strip():  # an unset variable; YAML would make it null, which is a field's default
        raise ConfigError(name, text, "a value, or the option left out")
    return parse_yaml(text, name)


def _counted(statuses: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {status}" for status, n in sorted(statuses.items())) or "nothing to do"


def _argument(folder: str) -> str:
    """A folder as a shell and then a command takes it, which takes a leading dash for an option's."""
    return shlex.quote(f"./{folder}" if folder.startswith("-") else folder)


def _list_failures(failures: Sequence[str]) -> None:
    for line in failures[:20]:
        complain(line)


def _report_failures(failures: Sequence[str], total: int, out: str) -> None:
    if failures:
        _list_failures(failures)
        raise WorkFailedError(
            f"{len(failures)} of {total} trials failed, listed above and in the column error of "
            f"{_argument(out)}/trials; --resume tries them again"
        )


@cli.command("sweep", short_help="Run every trial of a spec.")
@run_options
@click.option(
    "--time-limit",
    type=TIME,
    help="Such as 9m or 1h30m: stop then, after the running epochs and cohorts; --resume goes on.",
)
@stop_option(False)
@click.option("--dry-run", is_flag=True, help="Show what would be run, and start nothing.")
def sweep_command(out: str, dry_run: bool, **given: Any) -> None:
    """Run every trial of SPEC (a shipped name, see gcsr specs, or a YAML file)."""
    asked = asked_for(**given)
    if dry_run:
        found = preview_sweep(asked.spec, Store(out), asked.options)
        Terminal(highlight=False, width=columns(160)).print(preview(found.trials, found.missing))
        total, left = len(found.trials), len(found.missing)
        say(f"{counted(total, 'trial')}, {total - left} ended before: {left} to run. Nothing was started.")
        return
    with resumable(asked.options.resume):
        outcome = run_sweep(asked.spec, Store(out), asked.options)
    ended = "none has ended" if outcome.left and not outcome.ran else _counted(outcome.statuses)
    say(f"{counted(outcome.total, 'trial')}, {outcome.ran} run now: {ended}. Next: gcsr report {_argument(out)}")
    if outcome.left:
        _list_failures(outcome.failures)
        command = resuming(asked.options.resume)
        short = asked.options.time_limit is not None and asked.options.time_limit < _START_SECONDS and not outcome.ran
        hint = " (it counts from the command, whose start takes seconds: more gets further)" if short else ""
        raise InterruptedRunError(f"the time limit left {counted(outcome.left, 'trial')}{hint}; resume with: {command}")
    _report_failures(outcome.failures, outcome.total, out)


@cli.command("search", short_help="Let Optuna search λ, μ and γ.")
@run_options
@click.option("--trials", type=click.IntRange(1, MAX_TRIALS), required=True, metavar="N", help="Trainings in all.")
@click.option("--sampler", type=click.Choice(SAMPLERS), help="Optuna's [default: the spec's, or tpe].")
@click.option(
    "--objective",
    "objectives",
    type=click.Choice(OBJECTIVES),
    multiple=True,
    help="What to maximize; give two for a Pareto front [default: the spec's, or val_accuracy].",
)
@click.option(
    "--pruner",
    type=click.Choice(PRUNERS),
    help="Give losing settings no more seeds; for one objective only [default: the spec's, or none].",
)
@click.option(
    "--window",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="Settings under way at once [default: as many as can be trained at once, + 1].",
)
@click.option("--storage", metavar="URL", help="Optuna's: a database or a journal file [default: DIR/study.journal].")
@click.option("--refit", is_flag=True, help="Train the best settings, by the first objective, again without hold-out.")
@stop_option(True)
def search_command(
    out: str,
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

    asked = asked_for(**given)
    spec = searched(asked.spec, sampler, objectives, pruner)
    with resumable(asked.options.resume):
        outcome = run_search(
            spec, Store(out), asked.options, trials=trials, window=window, storage=storage, refit=refit
        )
    kind = "best" if len(spec.search.objectives) == 1 else "Pareto front"
    for best in outcome.best:
        found = ", ".join(f"{name} {value:g}" for name, value in best.params.items())
        values = ", ".join(
            f"{name} {value:.4f}" for name, value in zip(spec.search.objectives, best.values, strict=True)
        )
        say(f"{kind} of {best.label}: {found}: {values}")
    if outcome.saved_epochs:
        say(f"not trained, as their trials had collapsed: {counted(outcome.saved_epochs, 'epoch')}")
    done = f"{counted(outcome.total, 'trial')}, {outcome.ran} run now: {_counted(outcome.statuses)}"
    say(f"{done}. Next: gcsr report {_argument(out)}")
    _report_failures(outcome.failures, outcome.total, out)


@cli.command("tolerance", short_help="Find the strongest λ that still learns.")
@run_options
@click.option(
    "--precision", type=float, default=0.1, show_default=True, metavar="R", help="Relative precision of the level."
)
@stop_option(True)
def tolerance_command(out: str, precision: float, **given: Any) -> None:
    """Find the strongest λ at which each method of SPEC still learns, bisecting between its grid's λ."""
    asked = asked_for(**given)
    with resumable(asked.options.resume):
        outcome = run_tolerance(asked.spec, Store(out), asked.options, precision=precision)
    table = Table("network", "reg.", "mode", "learns up to λ", "collapses at λ", "trials", box=None)
    networks = network_texts([level.config.to_dict() for level in outcome.levels], FAMILY_FIELDS)
    for level, network in zip(outcome.levels, networks, strict=True):
        config = level.config
        method = method_text(config.mode, mu=config.mu, gamma=config.gamma, gamma_threshold=config.gamma_threshold)
        found = [float_text(lam) for lam in (level.tolerance_lam, level.collapse_lam)]
        table.add_row(network, config.regularizer, method, *found, str(level.trials))
    Terminal(highlight=False, width=columns(120)).print(table)
    tried = sum(level.trials for level in outcome.levels)
    done = (
        f"{counted(tried, 'trial')} ({outcome.grid} in the grid), {outcome.ran} run now: {_counted(outcome.statuses)}"
    )
    say(f"{done}. Next: gcsr report {_argument(out)}")
    _report_failures(outcome.failures, tried, out)


@cli.command("report")
@click.argument("folder", type=LOCATION, metavar="DIR")
@click.option("--format", "form", type=click.Choice(FORMATS), default="text", show_default=True)
@click.option("--out", type=LOCAL_PATH, metavar="FILE", help="Write to FILE instead of the terminal.")
@click.option("--figures", type=LOCAL_PATH, metavar="FOLDER", help="Also write every figure there as SVG, PNG and PDF.")
@click.option("--watch", is_flag=True, help="Serve the HTML report on loopback, and refresh it while the sweep runs.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8777, show_default=True, help="Where --watch serves; 0 takes any."
)
def report_command(folder: str, form: Format, out: Path | None, figures: Path | None, watch: bool, port: int) -> None:
    """Show the verdict of the sweep in DIR, also while it runs."""
    from tune.reporting import Report  # only here: the libraries of statistics and figures take seconds to import

    store = _store_to_read(folder)
    if watch:
        for option, given in (("format", form if form != "text" else None), ("out", out), ("figures", figures)):
            if given is not None:
                raise InvalidInputError(f"{option}: {str(given)!r} is not allowed with --watch, which serves the page")
        from tune.watch import serve

        serve(store, folder, port, on_ready=lambda url: complain(f"serving {url} (Ctrl-C ends it)"))
        return
    with permitted(folder):
        report = Report(store, fallback_title=folder)
        text = report.render(form, width=columns(160))
    if figures is not None:
        with _writing("figures", figures):
            for path in report.write_figures(figures):
                complain(f"wrote {path}")
    if out is None:
        say(text.encode() if form == "html" else text, nl=False)  # a page says itself how it is encoded
    else:
        with _writing("out", out), write_atomically(out) as target:
            target.write(text.encode())
    if report.damaged:
        for line in report.damaged[:20]:
            complain(f"gcsr: {line}")
        raise InvalidInputError(
            f"dir: {counted(len(report.damaged), 'damaged file')} left out; with --resume, the command that filled DIR "
            "puts damaged files aside and runs again what is missing, or says what to do"
        )


def _store_to_read(folder: str) -> Store:
    try:
        store = Store(folder)
        found = store.exists()
    except StoreError as error:  # which speaks of the option that the commands that write have
        raise StoreError(f"dir: {str(error).removeprefix('out: ')}") from None
    if not found:
        raise StoreError(f"dir: {folder!r} holds no sweep; expected the --out of gcsr sweep")
    return store


@contextlib.contextmanager
def _writing(option: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidInputError(f"{option}: {str(path)!r} cannot be written: {error.strerror}") from None


@cli.command("merge", short_help="Add the trials of some stores to another.")
@click.argument("folders", type=LOCATION, metavar="DIR...", nargs=-1, required=True)
@click.option("--out", type=LOCATION, required=True, metavar="DIR", help="Store to add to: a new one, or a sweep's.")
def merge_command(folders: tuple[str, ...], out: str) -> None:
    """Add to a store the trials that it lacks and each DIR has: halves of a sweep, or what several machines measured.

    Of a trial that several have, the first one's result is taken; failed trials, which run again, are left out.
    Trained networks and TensorBoard runs come with their trials.
    """
    target, sources = Store(out), [_store_to_read(folder) for folder in folders]
    for folder, source in zip(folders, sources, strict=True):
        if source.is_same(target):
            raise StoreError(f"dir: {folder!r} is not allowed; expected other stores than --out")
    again = f"the same command goes on: {command_line()}"
    console = Terminal(stderr=True)
    copied = TextColumn("{task.completed:,.0f} epochs and {task.fields[files]:,.0f} files copied")
    with Progress(copied, console=console, transient=True, disable=not console.is_terminal) as shown:
        task, files = shown.add_task("", total=None, files=0), itertools.count(1)
        try:
            outcome = merge_stores(
                sources,
                target,
                on_rows=lambda rows: shown.advance(task, rows),
                on_file=lambda: shown.update(task, files=next(files)),
            )
        except KeyboardInterrupt:
            raise InterruptedRunError(again) from None
        except OSError as error:
            raise WorkFailedError(f"{os_line(error)}; {again}") from None
    said = f"{counted(outcome.added, 'trial')} added, {outcome.present} there before"
    if outcome.files:
        said += f"; {counted(outcome.files, 'file')} (networks, TensorBoard runs) copied"
    say(f"{said}. Next: gcsr report {_argument(out)}")
    if outcome.conflicts:
        complain(f"gcsr: {counted(outcome.conflicts, 'trial')} gave another result elsewhere; the first one was kept")


@cli.command("data", short_help="Prepare and check a data set.")
@click.argument("name")
@data_option
@click.option("--download", is_flag=True, help="Fetch what is missing from the data set's own site.")
@click.option("--check", is_flag=True, help="Also compare the file with its checksum, NAME.npz.sha256.")
def data_command(name: str, data: str | None, download: bool, check: bool) -> None:
    """Prepare a data set, check its shapes and labels, and say what is there."""
    root = data_location(data)
    if root is not None and "://" in root:
        raise InvalidInputError(f"data: {root!r} is not allowed here; expected a folder, whose files may be put there")
    arrays = prepare_arrays(name, root, download=download)
    checksum = verify_arrays(name, root) if check else None
    where = "inside scikit-learn" if name == "digits" else str(data_root(root))
    say(f"{name}: {where}")
    for key, array in arrays.items():
        say(f"  {key}: {array.dtype} {list(array.shape)}")
    if checksum is not None:
        say(f"  sha256: {checksum}")


@cli.command("specs")
@click.argument("name", required=False)
def specs_command(name: str | None) -> None:
    """List the shipped specs; with NAME, print that spec."""
    shipped = shipped_specs()
    if name is not None:
        if name not in shipped:
            raise InvalidInputError(f"name: {name!r} is not allowed; expected one of {', '.join(shipped)}")
        say(shipped[name], nl=False)
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, overflow="fold")
    for each in shipped:
        spec = load_spec(each)
        table.add_row(each, counted(len(spec.trials()), "trial"), spec.description)
    Terminal(highlight=False, width=columns(160)).print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 1 failed, 2 bad input, 130 interrupted)."""
    return main_of(cli, arguments)


if __name__ == "__main__":
    run_as_program(cli)
