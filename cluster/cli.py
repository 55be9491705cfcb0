"""The command line of ``gcsr``: all of `tune.cli`, and ``gcsr submit`` for jobs on a cluster."""

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from cluster.run import COMMANDS
from gcsr import InvalidInputError
from tune.cli import cli as tune_cli
from tune.endings import (
    DONE,
    FAILED,
    INTERRUPTED,
    InterruptedRunError,
    WorkFailedError,
    main_of,
    run_as_program,
)
from tune.filesystem import Files
from tune.folder import Folder
from tune.job import SweepJob
from tune.options import Asked, asked_for, searched
from tune.passwords import refuse_password
from tune.placement import worker_resources
from tune.provenance import commit
from tune.spec import shipped_specs
from tune.terminal import Terminal, columns, complain, say
from tune.tolerance import methods_of

if TYPE_CHECKING:
    from cluster.jobs import Job, JobCommand, Jobs

__all__ = ["cli", "main"]

_DASHBOARD = "http://127.0.0.1:8265"
_RUN_OPTIONS = {str(option.name) for option in tune_cli.commands["sweep"].params} - {"out", "dry_run"}


def _without_password(context: click.Context, option: click.Parameter, address: str) -> str:
    refuse_password("address", address)
    return address


_address_option = click.option(
    "--address",
    default=_DASHBOARD,
    show_default=True,
    envvar="RAY_API_SERVER_ADDRESS",
    callback=_without_password,
    metavar="URL",
    help="Where the cluster's dashboard is.",
)
_job_argument = click.argument("name", metavar="JOB")


class _Submit(click.Group):
    """``gcsr submit SPEC …`` submits; a subcommand's name in place of SPEC is that subcommand."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group("submit", cls=_Submit, subcommand_metavar="SPEC --out URI [OPTIONS] | COMMAND JOB")
def submit() -> None:
    """Run a sweep as a job on a Ray cluster, and look after it.

    gcsr submit SPEC --out URI starts the job, shows what it prints and ends with its exit code; all options of gcsr
    sweep may follow. The laptop may be closed meanwhile: the job goes on.
    """


@submit.command(
    "run",
    short_help="Submit SPEC (the word run may be left out).",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.argument("spec")
@click.option("--out", required=True, metavar="URI", help="Store that every node reaches.")
@_address_option
@click.option("--command", type=click.Choice(COMMANDS), default="sweep", show_default=True, help="What to run.")
@click.option("--no-wait", is_flag=True, help="Print the job's name and return.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def run_command(spec: str, out: str, address: str, command: str, no_wait: bool, options: tuple[str, ...]) -> int:
    """Submit (the word run may be left out); OPTIONS are those of gcsr sweep, or of the other --command."""
    wanted = _job_command(command, spec, out, options)
    jobs = _jobs(address)
    return _start(jobs, wanted, no_wait)


@submit.command("status")
@click.argument("name", metavar="[JOB]", required=False)
@_address_option
def status_command(name: str | None, address: str) -> None:
    """Show gcsr's jobs on the cluster, or one of them."""
    jobs = _jobs(address)
    table = Table("job", "status", "exit code", "started", "minutes", "command", box=None)
    for job in [jobs.job(name)] if name is not None else jobs.all():
        began = "" if job.started is None else f"{datetime.fromtimestamp(job.started):%Y-%m-%d %H:%M}"
        minutes = "" if job.started is None else f"{((job.ended or datetime.now().timestamp()) - job.started) / 60:.1f}"
        code = "" if job.exit_code is None else str(job.exit_code)
        table.add_row(job.name, job.status.lower(), code, began, minutes, shlex.join(job.command.words()))
    Terminal(highlight=False, width=columns(240)).print(table)


@submit.command("logs")
@_job_argument
@_address_option
@click.option("--follow", is_flag=True, help="Go on until the job ends, and end with its exit code.")
def logs_command(name: str, address: str, follow: bool) -> int:
    """Show what a job has printed."""
    jobs = _jobs(address)
    if follow:
        jobs.job(name)
        return _follow(jobs, name)
    say(jobs.logs(name), nl=False)
    return DONE


@submit.command("stop")
@_job_argument
@_address_option
def stop_command(name: str, address: str) -> None:
    """End a job; what it has done is stored, and resume goes on with it."""
    told = _jobs(address).stop(name)
    done = "is told to stop" if told else "has ended already"
    say(f"{name} {done}. Go on with it: {_with_address('resume', name, address)}")


@submit.command("resume", short_help="Go on with what a job began, in a new one.")
@_job_argument
@_address_option
@click.option("--no-wait", is_flag=True, help="Print the new job's name and return.")
def resume_command(name: str, address: str, no_wait: bool) -> int:
    """Start a new job that goes on with what JOB began; it takes the code that is here now."""
    from cluster.jobs import ENDED

    jobs = _jobs(address)
    job = jobs.job(name)
    if job.status not in ENDED:
        raise InvalidInputError(f"job: {name} is {job.status.lower()}; expected one that has ended")
    return _start(jobs, job.command.resumed(), no_wait)


def _job_command(command: str, spec: str, out: str, options: Sequence[str]) -> "JobCommand":
    """Everything that can be wrong is refused here, before the cluster is asked for anything."""
    from cluster.jobs import JobCommand
    from cluster.package import modules_here

    if spec.startswith("-"):
        raise InvalidInputError(f"spec: {spec!r} is not allowed; expected SPEC before the options of gcsr {command}")
    for word in (out, *options):
        refuse_password("submit", word)
    if "://" not in out and not Path(out).is_absolute():
        raise InvalidInputError(
            f"out: {out!r} is not allowed in a job; expected a URI such as s3://bucket/name, or the absolute path of a "
            "folder that all nodes share"
        )
    if not _connects(out):
        Folder(out, offline=True)
    # Parsed as the command on the cluster will: its options' own complaints come now.
    parsed: dict[str, Any] = (
        tune_cli.commands[command].make_context(f"gcsr {command}", [spec, "--out", out, *options]).params
    )
    for option in ("executor", "address"):
        if any(word == f"--{option}" or word.startswith(f"--{option}=") for word in options):
            raise InvalidInputError(f"{option}: is not allowed in a job; a job runs its trials on its own cluster")
    if parsed.get("dry_run"):
        raise InvalidInputError("dry_run: is not allowed in a job; gcsr sweep --dry-run shows what a job would run")
    data = parsed["data"]
    if data and "://" not in data and not Path(data).is_absolute():
        raise InvalidInputError(
            f"data: {data!r} is not allowed in a job; expected a URI, or an absolute path on its nodes"
        )
    if data and not _connects(data):
        Files(data, "data", offline=True)
    asked = asked_for(**{name: value for name, value in parsed.items() if name in _RUN_OPTIONS})
    _build(command, asked, parsed)
    own = spec not in shipped_specs()
    return JobCommand(
        command=command,
        spec=Path(spec).name if own else spec,
        spec_text=Path(spec).read_text(encoding="utf-8") if own else None,
        out=out,
        options=tuple(options),
        commit=commit(),
        modules=modules_here(model for space in asked.spec.spaces() for model in space.get("model", ())),
    )


def _connects(location: str) -> bool:
    """Whether Arrow connects as soon as it reads the URI: a cluster's Hadoop may be out of reach from here."""
    return location.startswith(("hdfs://", "viewfs://"))


def _build(command: str, asked: Asked, given: Mapping[str, Any]) -> None:
    """Make what the command will make of its spec, so that a combination that cannot be is refused."""
    job = SweepJob(
        experiment=asked.spec.experiment,
        store="",  # looked for by the job
        gpu_share=asked.options.gpu_share,
        workers=asked.spec.workers,
        cohort=asked.options.cohort,
        trials_per_gpu=asked.options.trials_per_gpu,
    )
    worker_resources(job, [])
    if command == "search":
        from tune.lines import lines_of  # only here: Optuna takes a second to import
        from tune.search import settings_of_lines

        spec = searched(asked.spec, given["sampler"], given["objectives"], given["pruner"])
        settings_of_lines(lines_of(spec.spaces(), spec.search), given["trials"])
    elif command == "tolerance":
        methods_of(asked.spec, given["precision"])
    else:
        asked.spec.trials()


def _start(jobs: "Jobs", command: "JobCommand", no_wait: bool) -> int:
    name = jobs.submit(command)
    if no_wait:
        say(name)
        return DONE
    complain(f"gcsr: job {name} on {jobs.address}")
    return _follow(jobs, name)


def _follow(jobs: "Jobs", name: str) -> int:
    from cluster.jobs import LostJobError

    try:
        job = jobs.follow(name, lambda text: say(text, nl=False))
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"job {name} goes on; watch it with: {_with_address('logs', name, jobs.address)} --follow; "
            f"end it with: {_with_address('stop', name, jobs.address)}"
        ) from None
    except LostJobError as error:
        raise WorkFailedError(str(error)) from None
    return _exit_code(job)


def _exit_code(job: "Job") -> int:
    if job.status == "SUCCEEDED":
        return DONE
    if job.status == "STOPPED":
        return INTERRUPTED
    if job.exit_code is None:  # it never came to run
        raise WorkFailedError(f"job {job.name} failed: {job.message[:300]}")
    return job.exit_code if job.exit_code > 0 else FAILED


def _with_address(command: str, name: str, address: str) -> str:
    where = "" if address == _DASHBOARD else f" --address {shlex.quote(address)}"
    return f"gcsr submit {command} {name}{where}"


def _jobs(address: str) -> "Jobs":
    try:
        from cluster.jobs import Jobs, host_of  # only here: Ray takes a second to import
    except ImportError as error:
        raise InvalidInputError(f"submit: needs pip install 'gcsr[cluster]': {error}") from None
    host = host_of(address)
    if address.startswith("http://") and host not in ("localhost", "127.0.0.1", "::1"):
        complain(f"gcsr: the cluster's token goes to {host} unencrypted; an ssh tunnel would hide it")
    return Jobs(address)


cli = click.Group(
    "gcsr",
    commands={**tune_cli.commands, "submit": submit},
    params=tune_cli.params,
    help=tune_cli.help,
    context_settings=tune_cli.context_settings,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 1 failed, 2 bad input, 130 interrupted)."""
    return main_of(cli, arguments)


if __name__ == "__main__":
    run_as_program(cli)
