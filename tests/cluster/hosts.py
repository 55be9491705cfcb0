"""Hosts on one machine: each a network, process, mount and name space of its own, joined by one switch.

A host has its own address, processes, ``/tmp``, home folder and ssh server; it sees this machine's programs, the Python
that runs this, and the checkout. Needs Linux, root, iproute2, util-linux and an OpenSSH server.
"""

import contextlib
import os
import pwd
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

__all__ = ["CHECKOUT", "Host", "Lan", "why_impossible"]

CHECKOUT = Path(__file__).resolve().parents[2]
_PROGRAMS = ("ip", "unshare", "nsenter", "mount", "sshd", "ssh", "ssh-keygen", "rsync", "curl")
_SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_HOME = Path(pwd.getpwuid(os.getuid()).pw_dir)


def why_impossible() -> str | None:
    """Why there can be no hosts on this machine; None if there can be."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [program for program in _PROGRAMS if shutil.which(program, path=_SBIN) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "ip", "link", "add", "v0", "type", "veth", "peer", "v1"],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": _SBIN},
    )
    return None if tried.returncode == 0 else f"namespaces are not allowed here: {tried.stderr.strip()}"


class Lan:
    """A switch with hosts on it; a context manager that ends them all.

    Args:
        name: begins the names of the namespaces.
        subnet: the first three numbers of the hosts' addresses.
    """

    def __init__(self, name: str = "gcsr", subnet: str = "10.207.83") -> None:
        self.name, self.subnet = name, subnet
        self.hosts: dict[str, Host] = {}

    def __enter__(self) -> Self:
        self._sweep_up()  # what an earlier run that was killed has left
        _ip("netns", "add", self.name)
        _ip("-n", self.name, "link", "add", "switch", "type", "bridge")
        _ip("-n", self.name, "link", "set", "switch", "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for host in self.hosts.values():
            host.end()
        self._sweep_up()

    def host(self, name: str, *, authorized_key: str | None = None) -> "Host":
        """Start a host.

        Args:
            name: its host name.
            authorized_key: whoever holds the private half may log in as root.
        """
        number = len(self.hosts) + 1
        host = Host(self, name, f"{self.subnet}.{number}", authorized_key)
        self.hosts[name] = host
        return host

    def _sweep_up(self) -> None:
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        for line in listed.splitlines():
            namespace = line.split()[0]
            if namespace == self.name or namespace.startswith(f"{self.name}-"):
                pids = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True).stdout.split()
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                _ip("netns", "del", namespace)


class Host:
    """One host of a `Lan`."""

    def __init__(self, lan: Lan, name: str, address: str, authorized_key: str | None) -> None:
        self.name, self.address = name, address
        self._lan, self._space, self._port = lan, f"{lan.name}-{name}", f"to-{name}"[:15]
        _ip("netns", "add", self._space)
        _ip("-n", lan.name, "link", "add", self._port, "type", "veth", "peer", "name", "eth0", "netns", self._space)
        _ip("-n", lan.name, "link", "set", self._port, "master", "switch", "up")
        for arguments in (["addr", "add", f"{address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
            _ip("-n", self._space, *arguments)
        _ip("-n", self._space, "link", "set", "lo", "up")
        _ip("-n", self._space, "route", "add", "default", "via", f"{lan.subnet}.254")  # leads nowhere; see `Lan`
        space = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        self._unshare = subprocess.Popen(
            ["ip", "netns", "exec", self._space, *space, "bash", "-c", _boot(name, authorized_key)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        assert self._unshare.stdout is not None
        if self._unshare.stdout.readline().strip() != "ready":
            raise RuntimeError(f"host {name} did not start: {self._unshare.communicate()}")
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split()
        self._init = int(children[0])

    def command(self, words: Sequence[str]) -> list[str]:
        """The command that runs ``words`` on this host, as root in its home folder."""
        inside = ["nsenter", "-t", str(self._init), "-m", "-p", "-n", "-u", "-i", f"--wd={_HOME}"]
        clean = ["env", "-i", f"HOME={_HOME}", f"PATH={_SBIN}", "LANG=C.UTF-8", "USER=root", "TERM=dumb"]
        return [*inside, *clean, "bash", "-lc", shlex.join(words)]

    def run(
        self, *words: str, check: bool = True, timeout: float = 300, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on this host and wait for it."""
        done = subprocess.run(self.command(words), capture_output=True, text=True, timeout=timeout, input=stdin)
        if check and done.returncode:
            raise RuntimeError(
                f"{self.name}: {shlex.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done

    def start(self, *words: str, output: IO[str] | int = subprocess.PIPE) -> subprocess.Popen[str]:
        """Start a command on this host; `stop` ends it."""
        return subprocess.Popen(
            self.command(words),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    @staticmethod
    def stop(process: subprocess.Popen[str]) -> None:
        """Kill a command that `start` has started: it is a child of what entered the host's name spaces."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file on this host; ``~`` is its home folder."""
        target = path.replace("~", str(_HOME))
        script = f"mkdir -p $(dirname {target}) && install -m {mode:o} /dev/stdin {target}"
        self.run("bash", "-c", script, stdin=text)

    def read(self, path: str) -> str:
        """A file of this host."""
        return self.run("cat", path.replace("~", str(_HOME))).stdout

    def cut_off(self) -> None:
        """Pull the network cable: nothing is told to anybody."""
        _ip("-n", self._lan.name, "link", "set", self._port, "down")

    def plug_in(self) -> None:
        """Put the cable back."""
        _ip("-n", self._lan.name, "link", "set", self._port, "up")

    def end(self) -> None:
        """Switch the host off."""
        self._unshare.kill()  # --kill-child takes the whole process space with it
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._init, signal.SIGKILL)
        self._unshare.communicate()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _boot(name: str, authorized_key: str | None) -> str:
    """The script that furnishes a host and then is its first process."""
    kept = _kept()
    aside = "\n".join(f"mkdir -p /mnt/{k} && mount --rbind {shlex.quote(str(p))} /mnt/{k}" for k, p in enumerate(kept))
    back = "\n".join(
        f"mkdir -p {shlex.quote(str(p))} && mount --rbind /mnt/{k} {shlex.quote(str(p))}" for k, p in enumerate(kept)
    )
    ssh = f"{_HOME}/.host"
    script = f"""
        set -e
        mount --make-rprivate /
        hostname {name}
        mount -t tmpfs tmpfs /mnt
        {{aside}}
        for folder in /tmp /run /dev/shm {_HOME}; do mount -t tmpfs -o size=4g tmpfs $folder; done
        chmod 1777 /tmp /dev/shm
        {{back}}
        mkdir -p /run/sshd {ssh} {_HOME}/.ssh
        chmod 700 {_HOME} {_HOME}/.ssh
        echo {shlex.quote(authorized_key or "")} > {_HOME}/.ssh/authorized_keys
        ssh-keygen -q -t ed25519 -N '' -f {ssh}/key
        cp /etc/skel/.bashrc /etc/skel/.profile {_HOME}/
        $(command -v sshd) -h {ssh}/key -o UsePAM=no -o PermitRootLogin=yes -o PidFile=none \\
            -o StrictModes=no -o PasswordAuthentication=no -E {ssh}/log
        echo ready
        while :; do sleep 3600 & wait $!; done
    """
    script = textwrap.dedent(script).replace("{aside}", aside).replace("{back}", back)
    return f"export PATH={shlex.quote(_SBIN)}\n{script}"


def _kept() -> list[Path]:
    """Folders that a host sees although it has ``/tmp`` and a home of its own: the Python that runs this, the code."""
    wanted = [Path(sys.prefix), Path(sys.base_prefix), CHECKOUT]
    hidden = [Path("/tmp"), Path("/run"), _HOME]
    return [path for path in dict.fromkeys(wanted) if any(path.is_relative_to(folder) for folder in hidden)]
