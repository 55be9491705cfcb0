"""A sweep into S3: the real protocol, on a server on loopback that fails some requests."""

import _thread
import gc
import re
import subprocess
import threading
import time
from datetime import timedelta

import pytest

from gcsr import InvalidInputError, TrialConfig
from tests.benchmarks.scaling import outcome
from tests.tune.stores import GRID, ended, rows
from tune import filesystem, lease
from tune.cli import main
from tune.compaction import compact, recover
from tune.endings import WorkFailedError, resumable
from tune.events import Pulse
from tune.folder import StoreError
from tune.job import Outcome
from tune.recorder import Recorder
from tune.run_options import RunOptions
from tune.schema import failed_row
from tune.spec import SweepSpec
from tune.store import Store
from tune.sweep import run_sweep

boto3 = pytest.importorskip("boto3")
pytest.importorskip("moto.server")

SPEC = SweepSpec(experiment="test", grid=GRID | {"mode": ["baseline", "ours_orig"], "regularizer": "l2"})


OTHER = {"id": "another", "host": "elsewhere", "pid": 1}


class Flaky:
    """A WSGI application before another: of so many requests it answers four in a row with 503.

    So it does every request whose method and path match ``down``.
    """

    def __init__(self, application):
        self.application, self.every, self.requests, self.failed = application, 0, 0, 0
        self.down = None
        self.lock = threading.Lock()

    def __call__(self, environ, start_response):
        with self.lock:
            self.requests += 1
            fail = self.every and self.requests % self.every < 4
            fail = fail or (self.down and re.match(self.down, f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"))
            self.failed += bool(fail)
        if fail:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Service Unavailable", [("Content-Length", "0")])
            return [b""]
        return self.application(environ, start_response)


@pytest.fixture(scope="module")
def server():
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    flaky = Flaky(DomainDispatcherApplication(create_backend_app))
    http = make_server("127.0.0.1", 0, flaky, threaded=True)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield flaky, http.server_port
    http.shutdown()
    thread.join()


@pytest.fixture
def bucket(server, monkeypatch, request):
    flaky, port = server
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(filesystem, "_BACK_OFF_SECONDS", 0.01)
    name = f"bucket-{abs(hash(request.node.name))}"
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1")
    client.create_bucket(Bucket=name)
    yield f"s3://{name}/sweep?scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"
    flaky.every, flaky.down = 0, None


def keys(bucket):
    """What the server holds in a bucket, by name."""
    from moto.s3.models import s3_backends

    return dict(s3_backends["123456789012"]["aws"].buckets[bucket.split("/")[2]].keys.items())


def test_a_sweep_into_a_store_that_fails_some_requests_equals_one_on_a_disk(bucket, server, tmp_path, capsys):
    server[0].every = 40  # four in a row is more than the S3 client itself tries
    remote, local = Store(bucket), Store(str(tmp_path))
    half = SPEC.replace({"seed": 0})
    run_sweep(half, remote, RunOptions(executor="inline"))
    outcome = run_sweep(SPEC, remote, RunOptions(executor="inline", resume=True))
    assert (outcome.total, outcome.ran) == (8, 4)
    assert server[0].failed > 8
    server[0].every = 0
    run_sweep(SPEC, local, RunOptions(executor="inline"))
    assert rows(remote) == rows(local)
    assert remote.epochs().to_table().num_rows == local.epochs().to_table().num_rows
    assert main(["report", bucket, "--format", "json"]) == 0
    assert '"comparisons"' in capsys.readouterr().out


def test_files_are_merged_there_too(bucket):
    store = Store(bucket)
    run_sweep(SPEC, store, RunOptions(executor="inline"))
    before = rows(store)
    compact(store, singles=8)
    recover(store)
    assert len(store.files("trials")) == len(store.files("epochs")) == 1
    assert rows(store) == before


def test_a_store_there_and_one_on_a_disk_are_merged_into_either(bucket, tmp_path, capsys):
    whole, disk = Store(str(tmp_path / "whole")), str(tmp_path / "disk")
    run_sweep(SPEC, whole, RunOptions(executor="inline"))
    run_sweep(SPEC.replace({"seed": 0}), Store(bucket), RunOptions(executor="inline"))
    run_sweep(SPEC.replace({"seed": 1}), Store(disk), RunOptions(executor="inline"))
    there = bucket.replace("/sweep?", "/merged?")
    for out in (str(tmp_path / "merged"), there):
        assert main(["merge", bucket, disk, "--out", out]) == 0
        assert capsys.readouterr().out.startswith("8 trials added, 0 there before.")
        assert rows(Store(out)) == rows(whole)
        assert Store(out).epochs().count_rows() == whole.epochs().count_rows()
    assert main(["merge", bucket, "--out", f"{bucket}&allow_bucket_creation=false"]) == 2
    assert "expected other stores than --out" in capsys.readouterr().err


LARGE = bytes(12 << 20)  # two parts and a bit


class Disturbed:
    """A filesystem, or a file being written: something happens whenever a piece is written."""

    def __init__(self, inner, happens):
        self.inner, self.happens = inner, happens

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def open_output_stream(self, path):
        return Disturbed(self.inner.open_output_stream(path), self.happens)

    def write(self, piece):
        self.inner.write(piece)
        self.happens()


def test_an_upload_that_broke_off_is_not_completed_after_a_later_one(bucket):
    store, happened = Store(bucket), []

    def fail_once():
        happened.append(len(happened))
        if len(happened) == 7:
            raise OSError("the network is down")

    store._files.filesystem = Disturbed(store._files.filesystem, fail_once)
    store.write_bytes("large", LARGE)
    gc.collect()
    assert len(happened) == 7 + 12
    store._files.filesystem = store._files.filesystem.inner
    assert store.read_bytes("large") == LARGE
    assert set(keys(bucket)) == {"sweep/", "sweep/large"}


@pytest.mark.parametrize(("new", "kept"), [(b"new", b"new"), (LARGE, b"old")])
def test_ctrl_c_leaves_no_half_object(bucket, new, kept):
    store = Store(bucket)
    store.write_bytes("file", b"old")
    store._files.filesystem = Disturbed(store._files.filesystem, _thread.interrupt_main)
    with pytest.raises(KeyboardInterrupt):
        store.write_bytes("file", new)
    store._files.filesystem = store._files.filesystem.inner
    gc.collect()
    assert store.read_bytes("file") == kept
    assert set(keys(bucket)) == {"sweep/", "sweep/file"}


def test_rows_that_only_a_killed_merge_holds_outlive_an_outage(bucket, server, capsys, monkeypatch):
    monkeypatch.setattr(filesystem, "_ATTEMPTS", 1)  # of six seconds each, by the S3 client itself
    store = Store(bucket)
    run_sweep(SPEC, store, RunOptions(executor="inline"))
    before = rows(store)
    singles = [info.base_name for info in store.files("trials")]
    store.write_merged("trials", "part-0-a.parquet", singles, store.read_pieces("trials", singles))
    store.each(store.remove, [f"trials/{name}" for name in singles])  # killed before the part was moved
    server[0].down = "GET .*/compacting/."
    capsys.readouterr()
    assert main(["sweep", "digits", "--executor", "inline", "--out", bucket, "--resume"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "resume with: gcsr" in line
    server[0].down = None
    recover(store)
    assert rows(store) == before


@pytest.mark.slow(15)
def test_an_outage_is_bad_input_before_a_run_and_ends_it_later_with_the_line_that_resumes(bucket, server, monkeypatch):
    monkeypatch.setattr(filesystem, "_ATTEMPTS", 1)
    monkeypatch.setattr(lease, "_SETTLE_SECONDS", 0.01)
    store = Store(bucket)
    server[0].down = "."
    with pytest.raises(StoreError, match=r"out: .* cannot be reached"), store.exclusive():
        pass
    with pytest.raises(OSError, match="503"):
        store.modified("checkpoints/x.pt")
    server[0].down = None
    failed = Outcome(failed_row(TrialConfig(mode="baseline", lam=1e-3), "test", "ValueError: no"), [])
    with (
        pytest.raises(WorkFailedError, match=r"503.*; resume with: gcsr"),
        resumable(True),
        store.exclusive(),
        Recorder(store, set(), []) as recorder,
    ):
        server[0].down = "GET /[^/]+$"  # the merge lists files, the writers do not
        recorder.ended(failed)
    server[0].down = None
    assert len(store.read_trials().table) == 1


def test_a_second_run_is_refused_while_the_first_lives(bucket, capsys, monkeypatch):
    monkeypatch.setattr(lease, "_SETTLE_SECONDS", 0.01)
    store = Store(bucket)
    with store.exclusive():
        assert main(["sweep", "digits", "--executor", "inline", "--out", bucket, "--resume"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "in use by another gcsr run" in line
        held = store.read_json("lease.json")
    assert store.read_json("lease.json") is None
    gone = subprocess.Popen(["true"])
    gone.wait()
    store.write_json("lease.json", held | {"pid": gone.pid, "machine": "another container of this host's name"})
    assert main(["sweep", "digits", "--executor", "inline", "--out", bucket, "--resume"]) == 2
    store.write_json("lease.json", held | {"pid": gone.pid})
    with store.exclusive():
        pass


def test_a_run_that_is_interrupted_before_it_holds_the_store_leaves_no_claim(bucket, monkeypatch):
    store = Store(bucket)

    def interrupted(seconds):
        assert store.read_json("lease.json") is not None
        raise KeyboardInterrupt

    monkeypatch.setattr(lease.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt), store.exclusive():
        pass
    assert store.read_json("lease.json") is None


@pytest.mark.parametrize("skew", [-1000, 1000])
def test_a_lease_from_elsewhere_is_judged_by_the_clock_of_the_store(bucket, monkeypatch, skew):
    monkeypatch.setattr(lease, "_SETTLE_SECONDS", 0.01)
    store = Store(bucket)
    store.write_json("lease.json", OTHER | {"renewed": time.time() + skew})
    with pytest.raises(InvalidInputError, match="in use by another gcsr run"), store.exclusive():
        pass
    keys(bucket)["sweep/lease.json"].last_modified -= timedelta(seconds=100)
    with store.exclusive():
        pass
    assert not [name for name in keys(bucket) if "lease" in name]


def hurry(monkeypatch):
    """Leases are looked at and renewed at once."""
    for wait in ("_SETTLE_SECONDS", "_RENEW_SECONDS"):
        monkeypatch.setattr(lease, wait, 0.01)


def test_a_run_whose_lease_was_taken_over_ends_and_leaves_it_to_the_other(bucket, monkeypatch):
    hurry(monkeypatch)
    store = Store(bucket)
    deadline = time.monotonic() + 20
    with (
        pytest.raises(WorkFailedError, match=r"taken over .* \(process 1 on elsewhere\) .* resume with: gcsr"),
        resumable(True),
        store.exclusive(),
        Recorder(store, set(), []) as recorder,
    ):
        recorder.ended(outcome(TrialConfig(mode="baseline", lam=1e-3)))
        recorder.wait()
        while time.monotonic() < deadline:
            store.write_json("lease.json", OTHER)  # as the other renews it: ours may have been about to be written
            time.sleep(0.05)
            recorder.noticed(Pulse(running=1, nodes=1))
    assert store.read_json("lease.json") == OTHER
    assert len(ended(store)) == 1


def test_a_store_that_is_deleted_ends_the_run_and_nothing_is_said_to_be_stored(bucket, monkeypatch):
    hurry(monkeypatch)
    store = Store(bucket)
    deadline = time.monotonic() + 20
    with (
        pytest.raises(WorkFailedError, match=r"was deleted while this run wrote into it, or was taken over") as ending,
        resumable(True),
        store.exclusive(),
        Recorder(store, set(), []) as recorder,
    ):
        while time.monotonic() < deadline:
            store.remove("lease.json")  # anew: it may have been about to be renewed
            time.sleep(0.05)
            recorder.noticed(Pulse(running=1, nodes=1))
    assert "is stored" not in str(ending.value)


def test_a_bucket_that_is_not_there_is_one_line(bucket, capsys):
    assert main(["sweep", "digits", "--executor", "inline", "--out", bucket.replace("s3://", "s3://not-")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "out:" in line
