"""gcsr's jobs on a Ray cluster, through Ray's Jobs API: with the cluster's token, or not at all."""

import asyncio
import contextlib
import json
import logging
import os
import shlex
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from aiohttp import ClientError
from ray import job_submission
from ray.exceptions import AuthenticationError

from cluster.package import SPEC_FOLDER, packed
from gcsr import InvalidInputError
from tune.filesystem import one_line

__all__ = ["ENDED", "Job", "JobCommand", "Jobs", "LostJobError", "host_of"]

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_METADATA = "gcsr"
_PROBE_SECONDS = 10.0
_POLL_SECONDS = 1.0
# Loggers of Ray that tell of uploads and closed sockets, each at a level of its own.
_TALKATIVE = ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk")
_RECONNECTS = 30  # of a log stream, a few seconds apart


class LostJobError(Exception):
    """The cluster no longer answers, or no longer knows the job."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobCommand:
    """What a job runs: kept with it on the cluster, so that it can be resumed from anywhere.

    Attributes:
        command: ``sweep``, ``search`` or ``tolerance``.
        spec: a shipped spec's name, or the file name of ``spec_text``.
        spec_text: YAML of a spec that is not shipped.
        out: the store.
        options: further options, word by word.
        commit: of the code that was submitted, if known.
        modules: that build the user's own networks, and are submitted, too (`cluster.package.modules_here`).
    """

    command: str
    spec: str
    spec_text: str | None
    out: str
    options: tuple[str, ...]
    commit: str | None
    modules: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """The job's command line after ``gcsr``."""
        spec = self.spec if self.spec_text is None else f"{SPEC_FOLDER}/{self.spec}"
        return [self.command, spec, "--out", self.out, *self.options]

    def resumed(self) -> "JobCommand":
        """The command that goes on with what this one began."""
        return self if "--resume" in self.options else replace(self, options=(*self.options, "--resume"))

    @classmethod
    def of(cls, metadata: dict[str, str] | None) -> Self | None:
        """From a job's metadata; None if it is no job of gcsr's."""
        try:
            fields = json.loads((metadata or {})[_METADATA])
            several = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
            return cls(**(fields | several))
        except (KeyError, TypeError, ValueError):
            return None


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the cluster knows it.

    Attributes:
        name: its submission id.
        status: Ray's word: ``PENDING``, ``RUNNING``, ``STOPPED``, ``SUCCEEDED`` or ``FAILED``.
        command: what it runs.
        exit_code: of its driver; None while it runs, or if it never did.
        message: Ray's line about it.
        started, ended: as `time.time` counts.
    """

    name: str
    status: str
    command: JobCommand
    exit_code: int | None
    message: str
    started: float | None
    ended: float | None


def host_of(address: str) -> str | None:
    """The host of a dashboard's address.

    Raises:
        InvalidInputError: it is no such address.
    """
    try:
        if address.rstrip("/").startswith(("http://", "https://")):
            return urllib.parse.urlsplit(address).hostname
    except ValueError:  # as of a bracket that is not closed
        pass
    raise InvalidInputError(
        f"address: {address!r} is not allowed; expected http://HOST:PORT of the cluster's dashboard"
    )


class Jobs:
    """The jobs of one cluster.

    Args:
        address: of its dashboard, ``http://HOST:PORT`` or ``https://…``.

    Raises:
        InvalidInputError: nobody answers there, there is no token, the token is refused, or the cluster asks for none.
    """

    def __init__(self, address: str) -> None:
        host_of(address)
        self.address = address.rstrip("/")
        headers = _authorization(self.address)
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        with self._refused():
            self._client = job_submission.JobSubmissionClient(self.address, headers=headers)

    def submit(self, command: JobCommand) -> str:
        """Pack the code and the spec, upload them and start the job.

        Returns:
            The job's name.

        Raises:
            InvalidInputError: a module of the command is not in this folder; or as `Jobs` itself.
        """
        name = f"gcsr-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:6]}"
        environment = {"GCSR_RESUME_COMMAND": f"gcsr submit resume {name} --address {self.address}"}
        if command.commit is not None:
            environment["GCSR_COMMIT"] = command.commit
        own = command.spec if command.spec_text is not None else None
        with packed(own, command.spec_text or "", command.modules) as folder, self._refused():
            self._client.submit_job(
                entrypoint=shlex.join(["python", "-m", "cluster.run", *command.words()]),
                submission_id=name,
                runtime_env={"working_dir": str(folder), "env_vars": environment},
                metadata={_METADATA: json.dumps(asdict(command))},
            )
        return name

    def job(self, name: str) -> Job:
        """A job by its name.

        Raises:
            InvalidInputError: the cluster knows no such job of gcsr's.
        """
        found = next((job for job in self.all() if job.name == name), None)
        if found is None:
            raise InvalidInputError(
                f"job: {name!r} is not known to {self.address}; expected one that gcsr submit status lists"
            )
        return found

    def all(self) -> list[Job]:
        """All jobs of gcsr's, the newest first."""
        with self._refused():
            details = self._client.list_jobs()
        jobs = [job for each in details if (job := _job(each)) is not None]
        return sorted(jobs, key=lambda job: job.started or 0.0, reverse=True)

    def logs(self, name: str) -> str:
        """What the job has printed so far."""
        self.job(name)
        with self._refused():
            return str(self._client.get_job_logs(name))

    def follow(self, name: str, write: Callable[[str], None]) -> Job:
        """Pass on what the job prints until it ends; a broken connection is taken up again.

        Raises:
            LostJobError: the cluster no longer answers, or no longer knows the job.
        """
        once, failures = _Once(write), 0
        while True:
            try:
                asyncio.run(self._tail(name, once))
                job = self.job(name)
                if job.status in ENDED:
                    return job
                failures = 0
            except (RuntimeError, OSError, ClientError, InvalidInputError) as error:
                failures += 1
                if self._has_forgotten(name):
                    raise LostJobError(
                        f"{self.address} no longer knows job {name}, as its head was started anew, and the job ended "
                        "with it; gcsr submit with the same words and --resume goes on with what is stored"
                    ) from None
                if failures > _RECONNECTS:
                    raise LostJobError(
                        f"{self.address} no longer answers: {one_line(error)}; if the cluster lives, so does job {name}"
                    ) from None
            time.sleep(_POLL_SECONDS if not failures else 2 * _POLL_SECONDS)

    def _has_forgotten(self, name: str) -> bool:
        """Whether the cluster answers, and knows no such job: a head that is started anew forgets its jobs."""
        with contextlib.suppress(InvalidInputError):
            return all(job.name != name for job in self.all())
        return False

    async def _tail(self, name: str, once: "_Once") -> None:
        once.begin()
        async for text in self._client.tail_job_logs(name):
            once.write(text)

    def stop(self, name: str) -> bool:
        """End a job: its driver is told, and killed if it does not listen. Every ended trial is stored.

        Returns:
            Whether it was told; False if it has ended already.
        """
        if self.job(name).status in ENDED:
            return False
        with self._refused():
            self._client.stop_job(name)
        return True

    @contextlib.contextmanager
    def _refused(self) -> Iterator[None]:
        """Ray's ways of saying no as one line."""
        try:
            yield
        except AuthenticationError as error:
            token = "the cluster's token is another than ours"
            raise InvalidInputError(f"address: {self.address} refused us: {token} ({_first_line(error)})") from None
        except (RuntimeError, ConnectionError, ValueError, OSError) as error:
            if isinstance(error, InvalidInputError):
                raise
            raise InvalidInputError(f"address: {self.address} cannot be used: {_first_line(error)}") from None


class _Once:
    """Passes on each character of a log once, however often the log is sent from its beginning."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._passed = self._position = 0

    def begin(self) -> None:
        """The log is sent from its beginning."""
        self._position = 0

    def write(self, text: str) -> None:
        """The next part of the log."""
        new = text[max(0, self._passed - self._position) :]
        self._position += len(text)
        if new:
            self._write(new)
            self._passed = self._position


def _job(details: Any) -> Job | None:
    command = JobCommand.of(details.metadata)
    if command is None or details.submission_id is None:
        return None
    started, ended = (None if ms is None else ms / 1000 for ms in (details.start_time, details.end_time))
    status = str(getattr(details.status, "value", details.status))
    message = " ".join((details.message or "").split())
    return Job(details.submission_id, status, command, details.driver_exit_code, message, started, ended)


def _authorization(address: str) -> dict[str, str]:
    """The header that shows the token; it is not optional, unless somebody says so in RAY_AUTH_MODE."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() == "disabled":
        return {}
    token, where = os.environ.get("RAY_AUTH_TOKEN", "").strip(), "RAY_AUTH_TOKEN"
    if not token:
        where = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
        with contextlib.suppress(OSError, UnicodeDecodeError):
            token = Path(where).read_text().strip()
    if not token:
        raise InvalidInputError(
            f"token: there is none in {where}; expected the cluster's, which ray get-auth-token --generate makes "
            "before the cluster is started"
        )
    if not (token.isascii() and token.isprintable()):  # said here: who refuses it as a header would repeat it
        raise InvalidInputError(f"token: what is in {where} is none; expected one line of plain characters")
    _require_closed(address)
    return {"Authorization": f"Bearer {token}"}


def _require_closed(address: str) -> None:
    """Refuse a cluster that asks for no token, before it is shown ours."""
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=_PROBE_SECONDS).close()
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return
        raise InvalidInputError(f"address: {address} is no Ray dashboard: it answers {error.code}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise InvalidInputError(f"address: {address} cannot be reached: {_first_line(reason)}") from None
    raise InvalidInputError(
        f"address: {address} lets everybody in who can reach it; start the cluster with RAY_AUTH_MODE=token, or set "
        "RAY_AUTH_MODE=disabled to go on without"
    )


def _first_line(error: object) -> str:
    return (" ".join(str(error).strip().splitlines()[:1]) or type(error).__name__)[:200]
