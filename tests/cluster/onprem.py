"""``python -m tests.cluster.onprem``: a real cluster of several hosts on this machine, from ``ray up`` to the report.

A laptop starts a head and two workers with ``ray up`` over ssh, from ``cluster/onprem.yaml`` with nothing but its
marked lines filled in. Strangers are refused. ``ray submit`` runs the digits sweep into an object store; in the middle
one worker's cable is pulled, and a machine that was off is switched on. The table must be that of a run on the laptop
alone, trial for trial. Then a job is submitted, stopped and resumed.

Every host is a network, process, mount and name space of its own (see `tests.cluster.hosts`): this takes root on Linux.
"""

import contextlib
import json
import re
import shlex
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from tests.cluster.hosts import CHECKOUT, Host, Lan, why_impossible
from tests.cluster.s3_server import BUCKET, PORT

__all__ = ["Scenario", "main"]

_VOLATILE = {"seconds", "seconds_mean", "finished_at"}
_TRAINS = "^ray::ResourceTrainable"  # what Ray calls a process that has been given trials
_TUNNEL = "ssh -o StrictHostKeyChecking=no -N -L 8265:127.0.0.1:8265 root@{head}"


class Scenario:
    """The hosts, and what is done with them; `play` does it all.

    Args:
        lan: that the hosts are on.
        say: called with a line for every step.
        options: of the digits sweep.
    """

    def __init__(self, lan: Lan, say: Callable[[str], None], options: tuple[str, ...] = ()) -> None:
        self._say, self._options = say, options
        self._began = time.monotonic()
        self.laptop = lan.host("laptop")
        self.laptop.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/.ssh/id_ed25519")
        key = self.laptop.read("~/.ssh/id_ed25519.pub").strip()
        self.store = lan.host("store")
        self.head, self.worker1, self.worker2, self.worker3 = (
            lan.host(name, authorized_key=key) for name in ("head", "worker1", "worker2", "worker3")
        )
        self.worker3.cut_off()  # it is off
        for host in lan.hosts.values():
            _furnish(host, f"http://{self.store.address}:{PORT}")

    def play(self) -> None:
        """From ``ray up`` to ``ray down``.

        Raises:
            AssertionError, RuntimeError: something is not as it should be.
        """
        self._serve_store()
        self._checkout()
        self._step("the cluster: ray up cluster/onprem.yaml")
        self._on_laptop("ray get-auth-token --generate && ray up -y cluster/onprem.yaml")
        self._wait_for_nodes(3)
        with self._tunnel():
            self._step("strangers: the dashboard, its jobs, Ray's client and the head itself refuse them")
            knocking = self._strangers_knock()
            self._strangers_are_refused()
            self._step("the sweep: ray submit cluster/onprem.yaml cluster/run.py -- sweep digits …")
            self._sweep_with_a_worker_cut_off()
            self._strangers_stayed_outside(knocking)
            self._step("the same on the laptop alone")
            self._equals_the_laptops()
            self._step("a job: submitted, stopped, resumed")
            self._job_stopped_and_resumed()
        self._step("ray down")
        self._on_laptop("ray down -y cluster/onprem.yaml")
        self._step("done")

    # -- the steps --------------------------------------------------------------------------------------------

    def _serve_store(self) -> None:
        server = self.store.start("bash", "-c", f"cd {CHECKOUT} && exec python -m tests.cluster.s3_server 2> ~/s3.log")
        assert server.stdout is not None
        assert server.stdout.readline().strip() == "ready", self.store.read("~/s3.log")

    def _checkout(self) -> None:
        """A clone of what is here, and the shipped file with its marked lines filled in."""
        listed = ["git", "-C", str(CHECKOUT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, capture_output=True, check=True).stdout
        files = b"\0".join(name for name in names.split(b"\0") if name and (CHECKOUT / name.decode()).is_file())
        copy = f"mkdir -p ~/gcsr && tar -C {CHECKOUT} --null -T - -c | tar -C ~/gcsr -x"
        self.laptop.run("bash", "-c", copy, stdin=files.decode())
        text = self.laptop.read("~/gcsr/cluster/onprem.yaml")
        workers = ", ".join(worker.address for worker in (self.worker1, self.worker2, self.worker3))
        for shipped, filled in (
            ("head_ip: 192.0.2.10", f"head_ip: {self.head.address}"),
            ("[192.0.2.11, 192.0.2.12]", f"[{workers}]"),
            ("ssh_user: ubuntu", "ssh_user: root"),
        ):
            assert text.count(shipped) == 1, shipped
            text = text.replace(shipped, filled)
        self.laptop.write("~/gcsr/cluster/onprem.yaml", text)
        self._on_laptop('pip install --quiet --editable ".[cluster]"')

    def _wait_for_nodes(self, count: int) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            found = self.head.run("bash", "-c", "RAY_AUTH_MODE=token ray list nodes --format json", check=False)
            with contextlib.suppress(ValueError):
                if sum(node["state"] == "ALIVE" for node in json.loads(found.stdout)) >= count:
                    return
            time.sleep(2)
        raise AssertionError(f"the cluster did not get {count} nodes: {found.stdout}{found.stderr}")

    def _strangers_are_refused(self) -> None:
        get = "curl -s -o /dev/null -m 10 -w %{http_code}"
        url = "http://127.0.0.1:8265/api"
        token = self.laptop.read("~/.ray/auth_token").strip()
        for path, status in (("version", "401"), ("jobs/", "401"), ("cluster_status", "401"), ("v0/nodes", "401")):
            assert self._on_laptop(f"{get} {url}/{path}") == status, path
        assert self._on_laptop(f"{get} -H 'Authorization: Bearer wrong' {url}/jobs/") == "403"
        assert self._on_laptop(f"{get} -H 'Authorization: Bearer {token}' {url}/jobs/") == "200"
        body = '{"entrypoint": "touch /tmp/broken-in"}'
        assert self._on_laptop(f"{get} -X POST -d '{body}' {url}/jobs/") == "401"
        elsewhere = self._on_laptop(f"{get} http://{self.head.address}:8265/api/version; true")
        assert elsewhere == "000", "the dashboard listens on loopback only"
        without = self._gcsr("submit status", environment="HOME=/nowhere", check=False)
        assert without.returncode == 2
        assert "token: there is none" in without.stdout

    def _strangers_knock(self) -> "dict[str, subprocess.Popen[str]]":
        """Somebody without the token calls Ray's client server and the head; Ray tries for half a minute."""
        knocking = {}
        for address in (f"ray://{self.head.address}:10001", f"{self.head.address}:6379"):
            script = (
                "import os; os.environ['RAY_AUTH_MODE'] = 'disabled'; import ray; print('knocking', flush=True); "
                f"ray.init({address!r}, log_to_driver=False); print('inside')"
            )
            knocking[address] = self.store.start("timeout", "90", "python", "-c", script)
        return knocking

    def _strangers_stayed_outside(self, knocking: "dict[str, subprocess.Popen[str]]") -> None:
        for address, process in knocking.items():
            said, _ = process.communicate(timeout=100)
            assert process.returncode != 0, said
            assert "knocking" in said
            assert "inside" not in said, f"{address} let a stranger in"
        assert self.head.run("test", "-e", "/tmp/broken-in", check=False).returncode == 1

    def _sweep_with_a_worker_cut_off(self) -> None:
        out = f"s3://{BUCKET}/cluster"
        words = ["sweep", "digits", "--out", out, "--wait", "5s", *self._options]
        submit = f"cd ~/gcsr && ray submit cluster/onprem.yaml cluster/run.py -- {shlex.join(words)}"
        with tempfile.TemporaryFile("w+") as output:
            process = self.laptop.start("bash", "-c", submit, output=output)
            self._wait_for_trials("cluster", 8, process)
            with self._held(process):
                self.worker2.cut_off()
                self.worker3.plug_in()
                text = f"worker2 ({self.worker2.address}) is cut off, worker3 ({self.worker3.address}) switched on"
                self._step(f"  {text}")
                awaited = {"node_left": self.worker2.address, "node_joined": self.worker3.address, "worker_lost": None}
                self._wait_for_events(out, awaited, process)
                self._step("  both have been noticed")
                metrics = self._metrics()
            code = process.wait(timeout=600)
            output.seek(0)
            said = output.read()
        assert code == 0, said
        assert "cannot be written" not in said, said
        assert 'status="running"' in metrics, metrics
        assert "ray_gcsr_trials_per_hour" in metrics

    def _equals_the_laptops(self) -> None:
        self._gcsr(shlex.join(["sweep", "digits", "--out", "/root/alone", *self._options]))
        alone, cluster = self._rows("/root/alone"), self._rows(f"s3://{BUCKET}/cluster")
        assert len(alone) == len(cluster) > 0
        for one, other in zip(alone, cluster, strict=True):
            differing = [f"{name}: {one[name]} alone, {other[name]} there" for name in one if one[name] != other[name]]
            assert not differing, f"trial {one['trial_id']} differs: {'; '.join(differing)}"
        reports = [
            json.loads(self._gcsr(f"report {where} --format json").stdout)
            for where in ("/root/alone", f"s3://{BUCKET}/cluster")
        ]
        for part in ("settings", "comparisons", "compression", "failures"):
            assert _lasting(reports[0][part]) == _lasting(reports[1][part]), part
        self._step(f"  {len(alone)} trials are equal to the last bit, and so is the report")

    def _job_stopped_and_resumed(self) -> None:
        spec = "experiment: mine\ngrid: {model: mlp2, mode: ours_orig, regularizer: l2, lam: [1e-3, 3e-3]}\n"
        self.laptop.write("~/mine.yaml", spec)
        out = f"s3://{BUCKET}/mine"
        options = "--set 'seed=[0, 1, 2, 3, 4, 5]' --set epochs=1000 --cohort 1 --wait 5s"
        name = self._gcsr(f"submit ~/mine.yaml --out {out} {options} --no-wait").stdout.strip().splitlines()[-1]
        self._wait_for_trials("mine", 2, None)
        stopped = self._gcsr(f"submit stop {name}").stdout
        assert f"gcsr submit resume {name}" in stopped
        self._wait_for_status(name, "stopped")
        before = len(self._rows(out))
        assert 2 <= before < 12, f"{before} trials had ended when the job was stopped"
        resumed = self._gcsr(f"submit resume {name}")
        assert f"12 trials, {12 - before} run now: {12 - before} finished" in resumed.stdout, resumed.stdout
        # An exit code that is not 0 comes back as it is: here of a folder that is on the head alone.
        apart = self._gcsr("submit ~/mine.yaml --out /root/apart --wait 5s", check=False)
        assert apart.returncode == 2, apart.stdout
        assert "out: '/root/apart' is not shared with this node" in apart.stdout, apart.stdout
        assert self.head.run("test", "-e", "/root/apart", check=False).returncode == 1, "nothing is left behind"
        listed = re.findall(r"^ *(gcsr-\S+) +(\w+)", self._gcsr("submit status").stdout, re.MULTILINE)
        assert [status for _, status in listed] == ["failed", "succeeded", "stopped"], listed
        assert "is not shared with this node" in self._gcsr(f"submit logs {listed[0][0]}").stdout
        secret = self.laptop.read("~/.ray/auth_token").strip()
        found = self.head.run("grep", "-rlF", secret, "/tmp/ray", check=False)
        assert found.returncode == 1, f"the token stands in {found.stdout}"

    # -- tools ------------------------------------------------------------------------------------------------

    def _step(self, text: str) -> None:
        self._say(f"{time.monotonic() - self._began:5.0f} s  {text}")

    def _on_laptop(self, script: str) -> str:
        return self.laptop.run("bash", "-c", f"cd ~/gcsr && {script}", timeout=600).stdout

    def _gcsr(self, arguments: str, *, environment: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        script = f"cd ~/gcsr && {environment} gcsr {arguments} 2>&1"
        return self.laptop.run("bash", "-c", script, timeout=600, check=check)

    @contextlib.contextmanager
    def _tunnel(self) -> Iterator[None]:
        process = self.laptop.start("bash", "-c", f"exec {_TUNNEL.format(head=self.head.address)}")
        try:
            for _ in range(50):
                if self._on_laptop("curl -s -o /dev/null -w %{http_code} http://127.0.0.1:8265/ || true") == "200":
                    break
                time.sleep(0.2)
            yield
        finally:
            Host.stop(process)

    @contextlib.contextmanager
    def _held(self, process: "subprocess.Popen[str]") -> Iterator[None]:
        """What trains stands still: no machine is so fast that its sweep ends before all has been seen."""
        hosts = (self.head, self.worker1, self.worker2)
        for host in hosts:
            while host.run("pkill", "-STOP", "-f", _TRAINS, check=False).returncode:
                assert process.poll() is None, "the sweep has ended"
                time.sleep(0.2)
        yield
        for host in hosts:
            host.run("pkill", "-CONT", "-f", _TRAINS, check=False)

    def _wait_for_events(self, out: str, awaited: dict[str, str | None], process: "subprocess.Popen[str]") -> None:
        """Until the log in the object store has them, each with its node."""
        script = "import sys; from tune.store import Store; print(Store(sys.argv[1]).read_bytes('log.jsonl').decode())"
        deadline = time.monotonic() + 240
        found: set[tuple[str, str | None]] = set()
        while not awaited.items() <= found:
            assert process.poll() is None, f"the sweep has ended: {found}"
            assert time.monotonic() < deadline, found
            time.sleep(1)
            lines = self._on_laptop(shlex.join(["python", "-c", script, out])).strip().splitlines()
            found = {(event["event"], event.get("node")) for event in map(json.loads, lines)}

    def _rows(self, out: str) -> list[dict[str, object]]:
        script = (
            "import json, sys; from tune.store import Store; table = Store(sys.argv[1]).read_trials(); "
            "assert not table.damaged; print(json.dumps(table.table.to_pylist(), default=str))"
        )
        rows = json.loads(self._on_laptop(shlex.join(["python", "-c", script, out])))
        return _lasting(rows)

    def _wait_for_trials(self, out: str, count: int, process: "subprocess.Popen[str] | None") -> None:
        listing = f"http://127.0.0.1:{PORT}/{BUCKET}?list-type=2&prefix={out}/trials/"
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and (process is None or process.poll() is None):
            # By their ending: pyarrow also keeps an empty object for the folder.
            if self.store.run("curl", "-s", listing).stdout.count(".parquet</Key>") >= count:
                return
            time.sleep(0.5)
        raise AssertionError(f"{out} did not get to {count} trials")

    def _wait_for_status(self, name: str, status: str) -> None:
        deadline = time.monotonic() + 60
        while status not in (shown := self._gcsr(f"submit status {name}").stdout):
            assert time.monotonic() < deadline, shown
            time.sleep(1)

    def _metrics(self) -> str:
        """What Prometheus would scrape on the head, the sweep's own part."""
        ports = "ss -ltnH | awk '{print $4}' | sed 's/.*://' | sort -u"
        script = f"for port in $({ports}); do curl -s -m 2 http://{self.head.address}:$port/metrics; done | grep gcsr_"
        deadline = time.monotonic() + 30
        while "gcsr_trials_per_hour" not in (found := self.head.run("bash", "-c", script, check=False).stdout):
            if time.monotonic() > deadline:
                break
            time.sleep(1)
        return found


def _lasting(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Rows without what no two runs have in common."""
    return [{name: value for name, value in row.items() if name not in _VOLATILE} for row in rows]


def _furnish(host: Host, endpoint: str) -> None:
    """What a machine of a real cluster has: Python with the packages already there, and credentials of the store.

    The virtual environment that the shipped file asks for exists, so nothing is fetched; ``pip install`` of the
    checkout then runs as the file says.
    """
    host.run(sys.executable, "-m", "venv", "--without-pip", "/root/gcsr-venv")
    packages = Path("/root/gcsr-venv") / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    host.write(str(packages / "machine.pth"), "\n".join(site.getsitepackages()) + "\n")
    for name, module in (("pip", "pip"), ("ray", "ray.scripts.scripts")):
        call = f"-m {module}" if name == "pip" else f"-c 'from {module} import main; main()'"
        host.write(f"/root/gcsr-venv/bin/{name}", f'#!/bin/sh\nexec /root/gcsr-venv/bin/python {call} "$@"\n', 0o755)
    settings = {
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it as: no isolation
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    exports = "".join(f"export {name}={value}\n" for name, value in settings.items())
    host.write("~/.profile", f"export PATH=$HOME/gcsr-venv/bin:$PATH\n{exports}. ~/.bashrc\n")
    host.write("~/.aws/credentials", "[default]\naws_access_key_id = test\naws_secret_access_key = test\n", 0o600)
    host.write("~/.aws/config", "[default]\nregion = us-east-1\n")


@click.command()
@click.option("--set", "assignments", multiple=True, help="Of the digits sweep, for a shorter one.")
def main(assignments: tuple[str, ...]) -> None:
    """Play the scenario, and say what happens; exit code 77 where there can be no hosts."""
    impossible = why_impossible()
    if impossible is not None:
        click.echo(f"skipped: there can be no hosts on this machine: {impossible}", err=True)
        sys.exit(77)
    with Lan() as lan:
        options = tuple(word for assignment in assignments for word in ("--set", assignment))
        Scenario(lan, click.echo, options).play()


if __name__ == "__main__":
    main()
