"""``gcsr submit``: what is refused before the cluster is asked, what a job takes with it, and clusters that say no.

Jobs on a real cluster: ``python -m tests.cluster.onprem``.
"""

import asyncio
import http.server
import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict

import pytest
from aiohttp import web

from cluster.cli import _job_command, cli, main
from cluster.jobs import JobCommand, Jobs, LostJobError, _Once
from cluster.package import modules_here, packed
from cluster.run import cluster_arguments
from gcsr import InvalidInputError

OUT = ["--out", "s3://bucket/sweep"]


def test_the_surface():
    options = {name: {o for p in command.params for o in p.opts} for name, command in cli.commands.items()}
    assert set(options) == {"train", "sweep", "search", "tolerance", "report", "merge", "data", "specs", "submit"}
    submit = cli.commands["submit"]
    assert set(submit.commands) == {"run", "status", "logs", "stop", "resume"}
    assert {"--out", "--address", "--no-wait", "--command"} <= {
        o for p in submit.commands["run"].params for o in p.opts
    }
    assert all("--address" in {o for p in command.params for o in p.opts} for command in submit.commands.values())


def test_a_command_does_not_wait_for_what_only_others_need():
    code = "import sys, cluster.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    needed_by_others = {"scipy", "statsmodels", "duckdb", "matplotlib", "plotly", "optuna", "ray", "sklearn", "aiohttp"}
    assert not needed_by_others & set(done.stdout.split())


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_job_whose_status_is_asked_may_be_left_out(capsys):
    assert "status [OPTIONS] [JOB]\n" in run(capsys, "submit", "status", "--help")[1]


BAD = {
    "no out": (["digits"], "Missing option '--out'"),
    "relative out": (["digits", "--out", "runs/x"], "out: 'runs/x' is not allowed in a job; expected a URI"),
    "unknown out": (
        ["digits", "--out", "foo://bucket/x"],
        "out: 'foo://bucket/x' is no path or URI that pyarrow knows",
    ),
    "out without a bucket": (["digits", "--out", "s3://"], "out: 's3://' names no bucket"),
    "root as out": (["digits", "--out", "/"], "out: '/' is not allowed; expected a folder of its own"),
    "unknown data": (["digits", *OUT, "--data", "foo://bucket"], "data: 'foo://bucket' is no path or URI that pyarrow"),
    "relative data": (["digits", *OUT, "--data", "here"], "data: 'here' is not allowed in a job"),
    "spec": (["digitz", *OUT], "spec: 'digitz'"),
    "spec last": (["--set", "lam=1", "digits", *OUT], "expected SPEC before the options"),
    "value": (["digits", *OUT, "--set", "lam=-1"], "lam: -1 is not allowed"),
    "field twice": (["digits", *OUT, "--set", "seed=0", "--set", "seed=1"], "seed is given twice"),
    "option": (["digits", *OUT, "--fast"], "No such option"),
    "time": (["digits", *OUT, "--time-limit", "9"], "time_limit: '9' is not allowed"),
    "share": (["digits", *OUT, "--gpu-share", "2"], "gpu_share: 2.0 is not allowed; expected a number from 0.01 to 1"),
    "executor": (["digits", *OUT, "--executor", "inline"], "executor: is not allowed in a job"),
    "dry run": (["digits", *OUT, "--dry-run"], "dry_run: is not allowed in a job"),
    "password": (["digits", "--out", "s3://key:secret@bucket/x"], "a URL with a password is not allowed"),
    "storage": (
        ["digits", *OUT, "--command", "search", "--trials", "9", "--storage", "postgresql://me:secret@db/x"],
        "a URL with a password is not allowed",
    ),
    "device": (["digits", *OUT, "--device", "cuda:1"], "Invalid value for '--device'"),
    "combination": (["digits", *OUT, "--set", "model=vgg16"], "model: 'vgg16' is not allowed"),
    "workers and cohort": (["digits", *OUT, "--set", "workers=2", "--cohort", "8"], "cohort: 8 is not allowed with 2"),
    "precision": (
        ["digits", *OUT, "--command", "tolerance", "--precision", "0"],
        "precision: 0 is not allowed; expected a number from 0.001 to 10",
    ),
    "levels": (
        ["digits", *OUT, "--command", "tolerance", "--set", "lam=0.1"],
        "lam: [0.1] is not allowed; expected two values > 0",
    ),
    "too few trials": (
        ["digits", *OUT, "--command", "search", "--trials", "1"],
        "trials: 1 is not allowed; expected at least",
    ),
    "searched combination": (
        ["digits", *OUT, "--command", "search", "--trials", "99", "--set", "model=vgg16"],
        "model: 'vgg16' is not allowed",
    ),
    "objectives": (
        ["digits", *OUT, "--command", "search", "--trials", "99", *2 * ["--objective", "sparsity"]],
        "is not allowed; expected one",
    ),
    "search without trials": (["digits", *OUT, "--command", "search"], "Missing option '--trials'"),
    "command": (["digits", *OUT, "--command", "train"], "Invalid value for '--command'"),
    "no job": (["logs"], "Missing argument 'JOB'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_exit_code_2(case, capsys):
    arguments, words = BAD[case]
    code, out, err = run(capsys, "submit", *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("gcsr: ")
    assert err.count("\n") == 1
    assert words in err
    assert "secret" not in err


def called(*arguments, **environment):
    """In a process of its own: Ray reads how it is to authenticate once a process."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "cluster.cli", "submit", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=known | environment, timeout=60)
    return done.returncode, done.stdout, done.stderr


def submit(*arguments, **environment):
    code, out, err = called(*arguments, **environment)
    assert out == ""
    assert err.count("\n") == 1, err
    return code, err


def test_without_a_token_nothing_is_asked(tmp_path):
    code, err = submit("status", RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    assert code == 2
    assert f"token: there is none in {tmp_path / 'token'}; expected the cluster's" in err


def test_without_a_home_folder_there_is_no_token(capsys, monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # what it gives where there is none
    assert main(["submit", "status"]) == 2
    assert "token: there is none in ~/.ray/auth_token; expected the cluster's" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://[::1", "address: 'http://[::1' is not allowed; expected http"),
        ("", "address: '' is not allowed; expected http"),
        ("http://KEY:PASSWORD@10.0.0.1:8265", "address: a URL with a password is not allowed"),
        ("10.0.0.1:8265", "address: '10.0.0.1:8265' is not allowed; expected http"),
        ("http://127.0.0.1:9", "http://127.0.0.1:9 cannot be reached"),
    ],
)
def test_addresses_that_are_none(address, words):
    code, err = submit("digits", *OUT, "--address", address, RAY_AUTH_TOKEN="0" * 64)
    assert code == 2
    assert words in err


@pytest.fixture
def answering():
    """Makes a server that answers every request with one status."""
    servers = []

    def started(status):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield started
    for server in servers:
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "words"),
    [(200, "lets everybody in who can reach it"), (404, "is no Ray dashboard: it answers 404"), (403, "refused us")],
)
def test_a_cluster_that_is_open_or_closed_to_us(status, words, answering):
    code, err = submit("status", "--address", answering(status), RAY_AUTH_TOKEN="0" * 64)
    assert code == 2
    assert words in err


@pytest.mark.parametrize("token", ["a\nsecret", "sécret"])
def test_a_token_that_is_none_is_not_repeated(token):
    code, err = submit("status", RAY_AUTH_TOKEN=token)
    assert code == 2
    assert "token: what is in RAY_AUTH_TOKEN is none; expected one line" in err
    assert "cret" not in err


def test_an_empty_token_is_none(tmp_path):
    (tmp_path / "token").write_text("\n")
    code, err = submit("status", RAY_AUTH_TOKEN=" ", RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    assert code == 2
    assert f"token: there is none in {tmp_path / 'token'}" in err


@pytest.fixture
def dashboard():
    """A dashboard that knows one job, which has ended; its log is to be had the third time only."""
    command = JobCommand(command="sweep", spec="digits", spec_text=None, out="s3://b/x", options=(), commit=None)
    job = {"type": "SUBMISSION", "submission_id": "job", "entrypoint": "", "status": "SUCCEEDED", "driver_exit_code": 0}
    asked = []

    async def version(request):
        if "Authorization" not in request.headers:
            raise web.HTTPUnauthorized
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""})

    async def jobs(request):
        return web.json_response([job | {"metadata": {"gcsr": json.dumps(asdict(command))}}])

    async def log(request):
        asked.append(request.path)
        if len(asked) == 1:
            request.transport.close()  # ServerDisconnectedError
        if len(asked) <= 2:
            raise web.HTTPBadGateway  # WSServerHandshakeError
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str("one\ntwo\n")
        await socket.close()
        return socket

    application = web.Application()
    application.add_routes(
        [web.get("/api/version", version), web.get("/api/jobs/", jobs), web.get("/api/jobs/job/logs/tail", log)]
    )
    loop, runner = asyncio.new_event_loop(), web.AppRunner(application)
    loop.run_until_complete(runner.setup())
    loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_a_log_whose_connection_breaks_is_taken_up_again(dashboard):
    code, out, err = called("logs", "job", "--follow", "--address", dashboard, RAY_AUTH_TOKEN="0" * 64)
    assert (code, out) == (0, "one\ntwo\n"), err


def test_a_line_break_after_the_token_is_not_part_of_it(dashboard):
    code, out, err = called("status", "job", "--address", dashboard, RAY_AUTH_TOKEN="0" * 64 + "\n")
    assert code == 0, err
    assert "succeeded" in out


def test_a_job_that_has_ended_is_not_stopped(dashboard):
    code, out, err = called("stop", "job", "--address", dashboard, RAY_AUTH_TOKEN="0" * 64)
    assert code == 0, err
    assert out.startswith("job has ended already")


def test_a_job_that_a_new_head_does_not_know_has_ended(dashboard, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    jobs = Jobs(dashboard)
    with pytest.raises(LostJobError, match="no longer knows job another, as its head was started anew"):
        jobs.follow("another", print)


def test_a_jobs_command_goes_to_the_cluster_and_back_word_for_word(tmp_path):
    spec = tmp_path / "mine.yaml"
    spec.write_text("experiment: mine\ngrid: {lam: 1e-3, mode: ours}\n")
    options = ("--set", "seed=[0, 1]", "--threads", "2")
    command = _job_command("sweep", str(spec), "/shared/a b", options)
    assert command.words() == ["sweep", "submitted/mine.yaml", "--out", "/shared/a b", *options]
    assert JobCommand.of({"gcsr": json.dumps(asdict(command))}) == command
    assert command.resumed().words() == [*command.words(), "--resume"]
    assert command.resumed().resumed() == command.resumed()
    for whole in (("search", ("--trials", "99", "--objective", "val_accuracy")), ("tolerance", ("--precision", "0.2"))):
        assert _job_command(whole[0], "digits", "s3://b/x", whole[1]).options == whole[1]
    assert _job_command("sweep", "digits", "s3://b/x", ()).words() == ["sweep", "digits", "--out", "s3://b/x"]
    for foreign in (None, {}, {"gcsr": "no"}, {"gcsr": "{}"}):
        assert JobCommand.of(foreign) is None


def test_a_log_that_is_sent_again_is_shown_once():
    shown = []
    once = _Once(shown.append)
    for parts in (["one\n", "two\n"], ["one\ntw"], ["one\ntwo\nthr", "ee\n"], []):
        once.begin()
        for part in parts:
            once.write(part)
    assert "".join(shown) == "one\ntwo\nthree\n"


def test_a_spec_that_does_not_parse_is_refused(tmp_path):
    spec = tmp_path / "mine.yaml"
    spec.write_text("experiment: mine\ngrid: {lam: }\n")
    with pytest.raises(InvalidInputError, match="lam"):
        _job_command("sweep", str(spec), "s3://bucket/x", ())


def test_a_package_is_the_code_and_the_spec_and_nothing_else(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("PASSWORD=1")
    with packed("mine.yaml", "experiment: mine\n") as folder:
        found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert {
            "gcsr/memory_pass.c",
            "gcsr/plain_network.c",
            "tune/specs/digits.yaml",
            "cluster/run.py",
            "submitted/mine.yaml",
        } <= found
        assert any(name.startswith("tune/templates/") for name in found)
        assert {name.split("/")[0] for name in found} == {"gcsr", "tune", "cluster", "submitted"}
        assert not [name for name in found if "__pycache__" in name or "/." in name]
    assert not folder.exists()


def test_modules_of_this_folder_that_build_networks_travel_too(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("import torch, blocks, cluster")
    (tmp_path / "blocks.py").write_text("")
    (tmp_path / "never.py").write_text("")
    (tmp_path / "ours" / ".cache").mkdir(parents=True)
    for file in ("ours/__init__.py", "ours/nets.py", "ours/token.txt", "ours/.cache/x.py"):
        (tmp_path / file).write_text("")
    spec = tmp_path / "grid.yaml"
    models = "[mine:net, ours.nets:small, torchvision.models:resnet18, gcsr.models:build_model, mlp6]"
    spec.write_text(f"experiment: own\ngrid: {{dataset: cifar10, model: {models}}}\n")
    command = _job_command("sweep", str(spec), "s3://bucket/x", ())
    assert command.modules == modules_here(["mine:net", "ours:net"]) == ("blocks", "mine", "ours")
    assert JobCommand.of({"gcsr": json.dumps(asdict(command))}) == command
    with packed("grid.yaml", "", command.modules) as folder:
        found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {name for name in found if name.split("/")[0] not in ("gcsr", "tune", "cluster", "submitted")} == {
        "blocks.py", "mine.py", "ours/__init__.py", "ours/nets.py",
    }  # fmt: skip
    monkeypatch.chdir(tmp_path / "ours")
    with pytest.raises(InvalidInputError, match=r"model: blocks\.py is not in "), packed("", "", command.modules):
        pass


@pytest.mark.parametrize(
    ("given", "run"),
    [
        (["sweep", "digits"], ["sweep", "digits", "--address", "auto"]),
        (["search", "digits"], ["search", "digits", "--address", "auto"]),
        (["tolerance", "digits"], ["tolerance", "digits", "--address", "auto"]),
        (["sweep", "digits", "--address", "10.0.0.1:6379"], ["sweep", "digits", "--address", "10.0.0.1:6379"]),
        (["sweep", "digits", "--executor=inline"], ["sweep", "digits", "--executor=inline"]),
        (["sweep", "digits", "--executor", "inline"], ["sweep", "digits", "--executor", "inline"]),
        (["sweep", "digits", "--executor", "ray"], ["sweep", "digits", "--executor", "ray", "--address", "auto"]),
        (["report", "s3://bucket/x"], ["report", "s3://bucket/x"]),
        ([], []),
    ],
)
def test_on_the_cluster_a_sweep_runs_on_the_cluster(given, run):
    assert cluster_arguments(given) == run
