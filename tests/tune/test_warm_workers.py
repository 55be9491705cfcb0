"""Workers that are forked: what Ray would have started, only sooner, whatever becomes of what they are forked of."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from tune import warm_workers as module
from tune.forked_worker import SOCKET
from tune.warm_workers import announce, setup_script, warm_workers

RUN = """
import contextlib, json, os, sys, tempfile
import psutil
from tune.warm_workers import warm_workers

OF_ONE = ("RAY_RAYLET_PID", "PS1", "SHLVL", "_")  # the last ones of the shell through which Ray starts a worker

def look(number, begun):
    import resource, signal, time
    import numpy as np
    from ray._raylet import JobID, PlacementGroupID
    open(os.path.join(begun, str(number)), "w").close()
    while len(os.listdir(begun)) < 3:  # until the others are there, too, each in a worker of its own
        time.sleep(0.01)
    return {
        "environment": {name: value for name, value in os.environ.items() if name not in OF_ONE},
        "folder": os.getcwd(),
        "options": [option.partition("=")[0] for option in sys.argv],
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "children": str(signal.getsignal(signal.SIGCHLD)),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "dies_first": open("/proc/self/oom_score_adj").read(),
        "files": [os.readlink(f"/proc/self/fd/{file}").rpartition(".")[2] for file in (1, 2)],
        "leads_its_group": os.getpgid(0) == os.getpid(),
    }, {
        "process": os.getpid(),
        "forked": "tune.worker_template" in " ".join(psutil.Process().parent().cmdline()),
        "random": [PlacementGroupID.of(JobID.from_int(1)).hex(), int(np.random.randint(2**62))],
    }

with warm_workers() if sys.argv[1] != "cold" else contextlib.nullcontext():
    from tune.ray_connection import connected
    with connected(None):
        import ray
        if sys.argv[1] == "orphans":
            [template] = [p for p in psutil.Process().children() if "tune.worker_template" in p.cmdline()]
            template.kill()
            template.wait()
        looking = ray.remote(num_cpus=0, runtime_env={"env_vars": {"OWN": "1"}})(look)
        with tempfile.TemporaryDirectory() as begun:
            looks = ray.get([looking.remote(number, begun) for number in range(3)], timeout=120)
        print(json.dumps(looks), flush=True)
        if sys.argv[1] == "wait":
            sys.stdin.read()
"""


def command(how):
    return [sys.executable, "-c", RUN, how]


def looks(how):
    ran = subprocess.run(command(how), capture_output=True, text=True, check=True, timeout=300)
    return json.loads(ran.stdout.splitlines()[-1])


def test_a_forked_worker_is_what_ray_would_have_started():
    forked, ordinary = looks("warm"), looks("cold")
    assert [own["forked"] for _, own in forked + ordinary] == [True] * 3 + [False] * 3
    for (look, _), (expected, _) in zip(forked, ordinary, strict=True):
        assert look == expected
    assert look["environment"]["OWN"] == "1"
    assert look["leads_its_group"]
    randoms = [number for _, own in forked for number in own["random"]]
    assert len(set(randoms)) == len(randoms)  # forks that go on with one generator give all their objects one name


def test_without_what_they_are_forked_of_workers_start_as_ever():
    assert [own["forked"] for _, own in looks("orphans")] == [False] * 3


def test_nothing_outlives_the_process_that_began_it():
    with subprocess.Popen(command("wait"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        workers = [own["process"] for _, own in json.loads(driver.stdout.readline())]
        ours = [
            process
            for process in psutil.Process(driver.pid).children(recursive=True)
            if process.pid in workers or "tune.worker_template" in process.cmdline()
        ]
        assert len(ours) == len(workers) + 1
        driver.kill()
        _, alive = psutil.wait_procs(ours, timeout=60)
    assert not alive


def test_forks_whose_random_numbers_had_begun_are_told():
    code = """
import ray
from ray._raylet import JobID, PlacementGroupID
from tune.worker_template import _two_random_ids_of_forks_are_equal
assert not _two_random_ids_of_forks_are_equal()
PlacementGroupID.of(JobID.from_int(1))
assert _two_random_ids_of_forks_are_equal()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("announced", [None, "1", "2"])
def test_only_workers_of_the_environment_with_which_ray_was_imported_are_forked(announced, tmp_path, monkeypatch):
    """Requests by themselves, without Ray. A worker that ended is buried, or Ray would take it for alive."""
    code = """
import os, sys
from tune import worker_template
worker_template._OF_RAY = ()
worker_template._BEFORE_RAY = ()
arguments = worker_template.serve(sys.argv[1])
if arguments is not None:
    print(*arguments, os.environ["TOLD"], flush=True)
"""
    socket = tmp_path / "socket"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(socket)], **pipes) as template:
        while not socket.exists():
            time.sleep(0.01)
        if announced is not None:
            monkeypatch.setenv(SOCKET, str(socket))
            announce(RAY_RAYLET_PID=announced)
        answers = []
        for variable in ("1", "1", "2"):
            script = "import json; from tune.forked_worker import _asks_for_fork as asks; import sys; "
            script += "print(json.dumps(asks(sys.argv[1:])))"
            context = json.dumps({"env_vars": {"TOLD": "so"}})
            own = ["--language=PYTHON", f"--serialized-runtime-env-context={context}"]
            environment = os.environ | {SOCKET: str(socket), "RAY_RAYLET_PID": variable}
            asked = [sys.executable, "-c", script, "worker.py", "--number=1", *own]
            answers.append(subprocess.run(asked, env=environment, capture_output=True, text=True, check=True).stdout)
        time.sleep(0.5)
        assert not psutil.Process(template.pid).children()
        template.stdin.close()
        assert template.wait(60) == 0
    fork = ["--number=1", "so", "true", "worker.py"]  # who asked, and the fork, each as soon as it can
    assert [sorted(answer.split()) for answer in answers] == (
        [["false"], ["false"], fork] if announced == "2" else [fork, fork, ["false"]]
    )


@pytest.mark.parametrize(
    "own",
    [
        ["--language=JAVA"],
        ["--language=PYTHON", '--serialized-runtime-env-context={"command_prefix": ["numactl"]}'],
        ["--language=PYTHON", '--serialized-runtime-env-context={"py_executable": "/elsewhere/python"}'],
        ["--language=PYTHON", '--serialized-runtime-env-context={"override_worker_entrypoint": "worker.py"}'],
    ],
)
def test_a_worker_of_another_kind_is_no_fork(own):
    from tune.forked_worker import _asks_for_fork

    assert not _asks_for_fork(["worker.py", *own])


def test_where_there_is_a_gpu_workers_are_not_forked(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_DEVICES", (str(tmp_path),))
    before = psutil.Process().children()
    with warm_workers():
        assert setup_script() is None
        assert psutil.Process().children() == before
