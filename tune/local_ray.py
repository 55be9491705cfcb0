"""A Ray of our own on this machine: who may use it, and no more of it than a sweep needs.

Imported where Ray may be: by `tune.ray_connection`, which sets what Ray reads as it is imported.
"""

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import ray
import ray._private.node
import ray._private.utils

from gcsr import InvalidInputError
from tune.filesystem import one_line
from tune.warm_workers import announce, setup_script

__all__ = ["start_local_ray"]

_LOOK_SECONDS = 0.02
_NODE_SECONDS = 10.0  # after these, Ray's own wait goes on


def start_local_ray(**options: Any) -> None:
    """Start Ray on this machine, for this user, and connect to it; ``ray.shutdown`` stops it.

    Args:
        options: of ``ray.init``.

    Raises:
        InvalidInputError: this user has no place for its secret.
        OSError: Ray cannot be started.
    """
    try:
        _keep_token_private()
        with _replaced(ray._private.node, "Node", _SweepNode):
            # Without "local" Ray would join whatever cluster was started on this machine, or RAY_ADDRESS names.
            ray.init(address="local", include_dashboard=False, **options)
    except InvalidInputError:
        raise
    except Exception as error:  # Ray raises many kinds, as for a full disk or a path that is too long
        hint = "its files go to /tmp/ray, or to ray/ in RAY_TMPDIR; --executor inline needs no Ray"
        raise OSError(f"Ray cannot be started on this machine: {one_line(error, 300)} ({hint})") from None


class _SweepNode(ray._private.node.Node):  # type: ignore[misc]
    """The node of a sweep on one machine.

    Ray starts three processes for people and for other machines, waits for the first of them, and then asks once a
    second whether its node is there: four seconds of a sweep that takes forty. What is overridden is Ray's own affair:
    where it comes to be called otherwise, the seconds are lost, and nothing else.
    """

    def __init__(self, ray_params: Any, *arguments: Any, **options: Any) -> None:
        ray_params.update_if_absent(setup_worker_path=setup_script())
        super().__init__(ray_params, *arguments, **options)

    def start_api_server(self, **options: Any) -> None:
        """No dashboard: without its page, it would only report usage."""
        # Who asks for it, as Ray Train does for each trial, is refused at once and does not wait until it is there.
        with contextlib.suppress(Exception):
            self.get_gcs_client().internal_kv_put(b"dashboard", b"127.0.0.1:0", True, b"dashboard")

    def start_monitor(self) -> None:
        """No autoscaler: one machine has nothing to scale."""

    def start_log_monitor(self) -> None:
        """Nobody to send workers' logs to the driver, which does not want them."""

    def start_raylet(self, *arguments: Any, **options: Any) -> None:
        """The raylet waits for its agent, which starts a second sooner where Ray's dashboard is not installed."""
        with _replaced(ray._private.utils, "get_dashboard_dependency_error", lambda: ImportError("not needed")):
            super().start_raylet(*arguments, **options)
        with contextlib.suppress(Exception):
            [raylet] = self.all_processes["raylet"]
            announce(RAY_RAYLET_PID=str(raylet.process.pid), RAY_JOB_ID=ray.JobID.from_int(1).hex())

    def start_ray_processes(self) -> None:
        super().start_ray_processes()
        with contextlib.suppress(Exception):
            import_module("ray.tune")  # is needed next, takes half a second, and while Ray imports nothing itself
            self._await_node()

    def _await_node(self) -> None:
        until = time.monotonic() + _NODE_SECONDS
        while not self.get_gcs_client().get_all_node_info(timeout=_NODE_SECONDS) and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)


@contextlib.contextmanager
def _replaced(module: Any, name: str, by: object) -> Iterator[None]:
    """Something of Ray's is another in this block, if Ray has it."""
    if not hasattr(module, name):
        yield
        return
    before = getattr(module, name)
    setattr(module, name, by)
    try:
        yield
    finally:
        setattr(module, name, before)


def _keep_token_private() -> None:
    """Make the secret of a local Ray, if there is none: Ray itself would let all users of this machine read it."""
    elsewhere = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if elsewhere or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    try:
        path = Path.home() / ".ray" / "auth_token"
    except RuntimeError:
        raise InvalidInputError(
            "HOME: is not set, and this user has no home folder, in which Ray keeps a secret"
        ) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w") as file:
            file.write(secrets.token_hex(32))
    with contextlib.suppress(OSError):  # one that Ray made before, unless the disk is read-only
        path.chmod(0o600)
