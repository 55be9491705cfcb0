"""The command line: its surface, what it prints, and that bad input is one line and exit code 2."""

import contextlib
import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import tune.train
from gcsr import InvalidInputError, TrialConfig, load_dataset, load_network
from gcsr.errors import OutOfTimeError
from tests.importing import loaded
from tests.tune.conftest import title
from tests.tune.data_sets import write_data_set
from tune.cli import cli, main
from tune.run_options import RunOptions
from tune.store import Store
from tune.trial import warn_of_precision


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_surface():
    options = {name: {o for p in command.params for o in p.opts} for name, command in cli.commands.items()}
    assert set(options) == {"train", "sweep", "search", "tolerance", "report", "merge", "data", "specs"}
    assert {"--out", "--resume", "--set", "--executor", "--address", "--max-concurrent"} <= options["sweep"]
    assert {"--lam", "--mode", "--batch_size", "--batch-size", "--json", "--checkpoint"} <= options["train"]
    assert {"--format", "--out"} <= options["report"]


def test_train_prints_one_json_object(capsys):
    code, out, _ = run(capsys, "train", "--model", "mlp1", "--mode", "ours", "--lam", "6e-3", "--epochs", 2, "--json")
    assert code == 0
    printed = json.loads(out)
    assert (printed["lam"], printed["epochs"], printed["gamma"], printed["mu"]) == (6e-3, 2, 5, None)
    expected = {"test_accuracy", "sparsity", "pi", "imposed_fraction", "train_loss", "status"}
    assert expected | {"grad_abs_mean", "weight_abs_mean"} <= set(printed)


def test_what_a_network_of_ones_own_prints_is_not_in_the_json(capsys):
    model = "tests.gcsr.own_networks:talkative"
    code, out, errors = run(capsys, "train", "--model", model, "--epochs", 1, "--json")
    assert code == 0 and json.loads(out)["model"] == model
    assert "here is your network" in errors


def test_train_goes_on_from_its_checkpoint(capsys, tmp_path):
    arguments = ["train", "--model", "mlp1", "--epochs", 2, "--json", "--checkpoint", tmp_path / "c.pt"]
    first = json.loads(run(capsys, *arguments)[1])
    assert json.loads(run(capsys, *arguments)[1]) == first  # seconds included: nothing was trained again


def test_train_saves_the_network_unless_it_is_of_no_use(capsys, tmp_path):
    arguments = ["train", "--model", "mlp6", "--epochs", 10, "--lr", "0.1", "--json", "--save"]
    result = json.loads(run(capsys, *arguments, tmp_path / "new" / "n.pt")[1])
    data, network = load_dataset("digits"), load_network(tmp_path / "new" / "n.pt")
    right = network(data.test_images).argmax(1) == data.test_labels
    assert right.double().mean().item() == result["test_accuracy"]
    code, out, err = run(capsys, *arguments, tmp_path / "none.pt", "--lam", "0.1")
    assert (code, json.loads(out)["status"]) == (0, "collapsed")
    assert err == f"gcsr: {tmp_path / 'none.pt'} was not written, as the trial collapsed\n"
    assert not (tmp_path / "none.pt").exists()


BAD = {
    "no command": [],
    "unknown command": ["swep"],
    "unknown option": ["sweep", "digits", "--out", "OUT", "--fast"],
    "no out": ["sweep", "digits"],
    "unknown spec": ["sweep", "digitz", "--out", "OUT"],
    "unknown field": ["sweep", "digits", "--out", "OUT", "--set", "lambda=1"],
    "no assignment": ["sweep", "digits", "--out", "OUT", "--set", "lam"],
    "field twice": ["sweep", "digits", "--out", "OUT", "--set", "seed=0", "--set", "seed=1"],
    "negative": ["sweep", "digits", "--out", "OUT", "--set", "lam=-1"],
    "wrong type": ["sweep", "digits", "--out", "OUT", "--set", "epochs=many"],
    "wrong yaml": ["sweep", "digits", "--out", "OUT", "--set", "lam=["],
    "executor": ["sweep", "digits", "--out", "OUT", "--executor", "slurm"],
    "concurrency": ["sweep", "digits", "--out", "OUT", "--max-concurrent", "0"],
    "inline on a cluster": ["sweep", "digits", "--out", "OUT", "--executor", "inline", "--address", "auto"],
    "device": ["sweep", "digits", "--out", "OUT", "--device", "tpu"],
    "device on a cluster": ["sweep", "digits", "--out", "OUT", "--device", "cuda:1", "--address", "127.0.0.1:9"],
    "train device": ["train", "--device", "cuda:1"],
    "password in out": ["sweep", "digits", "--out", "s3://KEY:PASSWORD@bucket/x"],
    "password in data": ["sweep", "digits", "--out", "OUT", "--data", "s3://KEY:PASSWORD@bucket/x"],
    "train password": ["train", "--data", "s3://KEY:PASSWORD@bucket/x"],
    "report password": ["report", "s3://KEY:PASSWORD@bucket/x"],
    "uri": ["sweep", "digits", "--out", "nonsense://x"],
    "no data": ["sweep", "paper-svhn-vgg11-l1", "--out", "OUT", "--data", "NOWHERE"],
    "train value": ["train", "--lam", "strong"],
    "train mode": ["train", "--mode", "yours"],
    "train model": ["train", "--model", "vgg16"],
    "train network": ["train", "--model", "tests.gcsr.own_networks:WithoutGradient"],
    "train data": ["train", "--dataset", "cifar10", "--model", "alexnet", "--data", "NOWHERE"],
    "train nan": ["train", "--lr", ".nan"],
    "cohorts in pieces": ["sweep", "digits", "--out", "OUT", "--time-limit", "9m", "--cohort", "4"],
    "data in a circle": ["data", "cifar10", "--data", "CIRCLE"],
    "train workers": ["train", "--workers", "65", "--batch_size", "64"],
    "report of nothing": ["report", "OUT"],
    "report format": ["report", "OUT", "--format", "pdf"],
    "data set": ["data", "imagenet"],
    "data into a uri": ["data", "cifar10", "--data", "s3://bucket", "--download"],
    "spec name": ["specs", "digitz"],
    "train on an unset variable": ["train", "--epochs", ""],
    "an unset variable": ["sweep", "digits", "--out", "OUT", "--set", "epochs="],
    "no hold-out to search on": ["search", "digits", "--out", "OUT", "--trials", "3", "--set", "holdout=0"],
    "empty out": ["sweep", "digits", "--out", ""],
    "no bucket": ["sweep", "digits", "--out", "s3://"],
    "a uri with an empty part": ["sweep", "digits", "--out", "s3://bucket/runs//1?region=us-east-1"],
    "half a uri": ["sweep", "digits", "--out", "s3:bucket"],
    "bytes": ["sweep", "digits", "--out", "\udcff"],
    "spec of a device": ["sweep", "/dev/zero", "--out", "OUT"],
    "digits without end": ["train", "--lam", "9" * 400],
    "tag": ["train", "--lam", "!!bool maybe"],
    "beyond unicode": ["sweep", "digits", "--out", "OUT", "--set", 'lam="\\UFFFFFFFF"'],
    "train bucket": ["train", "--data", "s3://", "--dataset", "cifar10", "--model", "alexnet"],
    "checkpoint uri": ["train", "--epochs", "1", "--checkpoint", "s3://bucket/c.pt"],
    "checkpoint device": ["train", "--epochs", "1", "--checkpoint", "/dev/full"],
    "checkpoint place": ["train", "--epochs", "1", "--checkpoint", "/proc/nowhere/c.pt"],
    "checkpoint of nobody": ["train", "--epochs", "1", "--checkpoint", "~nosuchuser/c.pt"],
    "save device": ["train", "--epochs", "1", "--save", "/proc/nowhere/n.pt"],
    "save folder": ["train", "--epochs", "1", "--save", "/"],
    "save over the checkpoint": ["train", "--epochs", "1", "--checkpoint", "OUT", "--save", "OUT"],
    "out of nobody": ["sweep", "digits", "--out", "~nosuchuser/z"],
    "storage without a name": ["search", "digits", "--out", "OUT", "--trials", "99", "--storage", ""],
    "report of an unknown kind": ["report", "foo://bar"],
    "report of an empty name": ["report", ""],
    "data download": ["data", "cifar10", "--data", "/dev/null/x", "--download"],
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_exit_code_2(case, capsys, tmp_path):
    named = {"OUT": tmp_path / "out", "NOWHERE": tmp_path / "nowhere", "CIRCLE": tmp_path / "circle"}
    (tmp_path / "circle").symlink_to("circle")
    code, out, err = run(capsys, *(named.get(a, a) for a in BAD[case]))
    assert code == 2
    assert not (tmp_path / "out").exists(), "nothing may be left behind"
    if case != "no command":  # that one prints the help
        assert out == ""
        assert err.startswith("gcsr: ")
        assert err.count("\n") == 1
        assert "KEY:PASSWORD" not in err


@pytest.fixture
def swept(tmp_path, capsys):
    """A small sweep's folder, and the arguments that made it."""
    options = [
        "--executor",
        "inline",
        "--set",
        "epochs=1",
        "--set",
        "seed=0",
        "--set",
        "lam=1e-3",
        "--set",
        "mode=ours",
    ]
    arguments = ["sweep", "digits", "--out", tmp_path / "out", *options]
    assert run(capsys, *arguments)[0] == 0
    return tmp_path / "out", arguments


@pytest.mark.parametrize(
    "places",
    [["--out", ""], ["--out", "s3://bucket/x"], ["--out", "."], ["--out", "/proc/x"], ["--figures", "/proc/x"]],
)
def test_places_that_a_report_cannot_be_written_to_are_bad_input(places, swept, capsys):
    code, _, err = run(capsys, "report", swept[0], *places)
    assert code == 2
    assert err.startswith(f"gcsr: {places[0][2:]}: {places[1]!r} ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("method", ["files", "read_json"])
def test_a_store_of_somebody_else_is_bad_input(method, swept, capsys, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EACCES, "Cannot list directory 'x'. Detail: Permission denied")

    monkeypatch.setattr(Store, method, refused)
    code, _, err = run(capsys, "report", swept[0])
    assert code == 2
    assert err.startswith(f"gcsr: dir: '{swept[0]}' cannot be read: [Errno 13] Cannot list")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "[" * 100_000, '{"trials": 5}', '{"trials": [{}]}', '{"runs": [1]}'),
        *('{"data": ["cifar10"]}', '{"data": {"cifar10": 1}}', '{"networks": {"nets:small": 1}}'),
    ],
)
def test_a_damaged_manifest_costs_no_trial_and_is_made_anew(content, swept, capsys):
    folder, arguments = swept
    (folder / "sweep.json").write_text(content)
    for form in ("text", "html"):
        code, out, err = run(capsys, "report", folder, "--format", form)
        assert code == 2
        assert "mlp6 on digits" in out
        assert "sweep.json is damaged" in err
    code, out, _ = run(capsys, *arguments, "--resume")
    assert code == 0
    assert "nothing to do" in out
    code, out, err = run(capsys, "report", folder)
    assert (code, err) == (0, "")
    assert out.startswith("digits: 2 of 2 trials ended")


def test_what_damage_a_report_names_resuming_mends(swept, capsys):
    folder, arguments = swept
    (one, other) = sorted((folder / "epochs").iterdir())
    one.write_bytes(b"")
    (folder / "trials" / other.name).write_bytes(b"")
    (folder / "trials" / "zz.parquet").write_bytes(b"PAR1")
    code, _, err = run(capsys, "report", folder, "--format", "html")
    assert code == 2
    assert err.count(" is damaged") == 3
    code, out, _ = run(capsys, *arguments, "--resume")
    assert code == 0
    assert "2 run now" in out
    assert run(capsys, "report", folder, "--format", "html")[0] == 0


def test_a_row_that_says_what_no_trial_can_is_damage(swept, capsys):
    folder, _ = swept
    path = min((folder / "trials").iterdir())
    table = pq.read_table(path)
    for name, value in (("status", "fine"), ("mode", None), ("test_accuracy", float("nan"))):
        column = pa.array([value], table.schema.field(name).type)
        pq.write_table(table.set_column(table.column_names.index(name), name, column), path)
        code, _, err = run(capsys, "report", folder)
        assert code == 2
        assert f"{path.name} is damaged: '{name} is " in err or f"{path.name} is damaged: {name} is " in err


@pytest.mark.parametrize("command", [["specs"], ["report", "OUT"], ["train", "--epochs", "1"], ["train", "--json"]])
def test_a_reader_that_has_had_enough_is_no_failure(command, swept):
    words = [str(swept[0]) if word == "OUT" else word for word in command]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "tune.cli", *words], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 0, done.stderr
    assert "rror" not in done.stderr


def test_nobody_needs_to_hear_of_the_progress(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    words = ["train", "--model", "mlp2", "--epochs", "20", "--json"]
    done = subprocess.run([sys.executable, "-m", "tune.cli", *words], stdout=subprocess.PIPE, stderr=writing, text=True)
    bad = subprocess.run([sys.executable, "-m", "tune.cli", "train", "--lam", "x"], stderr=writing)
    os.close(writing)
    assert (done.returncode, bad.returncode) == (0, 2)
    assert json.loads(done.stdout)["status"] == "finished"


def test_the_data_folder_of_the_environment_has_no_password_either(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("GCSR_DATA", "s3://KEY:PASSWORD@bucket/x")
    code, _, err = run(capsys, "sweep", "digits", "--out", tmp_path / "out")
    assert code == 2
    assert err.startswith("gcsr: data: a URL with a password is not allowed")
    assert "PASSWORD@" not in err


@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_checkpoint_is_bad_input(workers, capfd, tmp_path):
    (tmp_path / "c.pt").write_bytes(b"PK\x03\x04 not a checkpoint")
    arguments = ["train", "--model", "mlp1", "--epochs", 1, "--workers", workers, "--checkpoint", tmp_path / "c.pt"]
    code, _, err = run(capfd, *arguments)
    assert code == 2
    assert "c.pt is no checkpoint of gcsr, or damaged" in err.splitlines()[-1]
    assert (tmp_path / "c.pt").read_bytes().startswith(b"PK")


def test_train_prints_a_line_an_epoch_and_a_dash_for_what_was_not_measured(capsys):
    code, out, err = run(capsys, "train", "--model", "mlp1", "--epochs", 2)
    assert code == 0
    assert [line.split(":")[0] for line in err.splitlines()] == ["epoch 1/2", "epoch 2/2"]
    assert re.search(r"^val_accuracy +– *$", out, re.MULTILINE)
    assert "None" not in out


@pytest.mark.parametrize("emulated", [True, False])
def test_a_precision_that_the_processor_lacks_is_warned_of(emulated, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("gcsr.precision.torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: not emulated)
    given = {"model": "mlp1", "epochs": 1, "lam": 1e-3, "seed": 0, "mode": "baseline", "regularizer": "l2"}
    options = [word for name, value in given.items() for word in (f"--{name}", value)]
    grid = [word for name, value in given.items() for word in ("--set", f"{name}={value}")]
    sweep = ["sweep", "digits", "--executor", "inline", "--out", tmp_path / "out", *grid]
    for arguments in (["train", *options, "--precision", "bf16"], [*sweep, "--set", "precision=[fp32, bf16]"]):
        code, _, err = run(capsys, *arguments)
        assert code == 0
        assert err.count("precision: bf16 is emulated on this processor") == emulated
    code, _, err = run(capsys, "train", *options)
    assert "emulated" not in err


def test_the_command_that_is_named_next_takes_a_folder_with_a_dash(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fields = ["--set", "mode=none", "--set", "model=mlp1", "--set", "epochs=1", "--set", "seed=0"]
    code, out, _ = run(capsys, "sweep", "digits", "--out=-runs", "--executor", "inline", *fields)
    assert code == 0
    named = shlex.split(out.partition("Next: gcsr ")[2])
    assert named == ["report", "./-runs"]
    assert run(capsys, *named)[0] == 0


def test_what_the_page_that_is_served_has_no_use_for_is_refused(swept, capsys, tmp_path):
    folder, _ = swept
    for option, value in (("format", "json"), ("out", tmp_path / "o"), ("figures", tmp_path / "f")):
        code, _, err = run(capsys, "report", folder, "--watch", f"--{option}", value)
        assert code == 2
        assert err == f"gcsr: {option}: {str(value)!r} is not allowed with --watch, which serves the page\n"


@pytest.mark.parametrize("folder", ["foo://bar", "s3://", "/"])
def test_a_place_that_no_report_can_be_of_is_called_dir(folder, capsys):
    code, _, err = run(capsys, "report", folder)
    assert code == 2
    assert err.startswith("gcsr: dir: ")


def test_one_is_no_plural(capsys, tmp_path):
    one = ["--executor", "inline", "--set", "mode=none", "--set", "seed=0", "--set", "epochs=1"]
    code, out, err = run(capsys, "sweep", "digits", "--out", tmp_path / "out", *one)
    assert code == 0
    assert out.startswith("1 trial, 1 run now")
    assert err.startswith("1 trial, 1 at once")


def test_a_home_that_the_shell_did_not_expand_is_the_home(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    code, _, err = run(capsys, "report", "~/runs")
    assert code == 2
    assert f"dir: '{tmp_path / 'home' / 'runs'}' holds no sweep" in err


@pytest.mark.parametrize(
    ("capability", "given", "warned"),
    [
        ((9, 0), {}, True),
        ((7, 5), {}, False),  # before TF32
        ((9, 0), {"precision": "tf32"}, False),
        ((9, 0), {"precision": "bf16"}, False),
        ((9, 0), {"dataset": "digits", "model": "mlp6"}, False),
    ],
)
def test_idle_tensor_cores_are_warned_of(capability, given, warned, capsys, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    config = TrialConfig(**{"dataset": "cifar100", "model": "alexnet", "mode": "none"} | given)
    warn_of_precision([config], torch.device("cuda"))
    assert capsys.readouterr().err.count("several times as long as tf32") == warned
    warn_of_precision([config], torch.device("cpu"))
    assert "tf32" not in capsys.readouterr().err


def test_train_fetches_data_from_a_uri(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("GCSR_DATA", (tmp_path / "shared").as_uri())
    write_data_set(tmp_path / "shared")
    trained = run(capsys, "train", "--dataset", "cifar10", "--model", "mlp1", "--epochs", 1, "--json")
    assert trained[0] == 0
    assert list((tmp_path / "cache").rglob("cifar10.npz"))
    code, out, err = run(capsys, "data", "cifar10", "--download")
    assert (code, out) == (2, "")
    assert "is not allowed here; expected a folder" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["sweep", "digits", "--out", "OUT", "--set", "lam=-1"],
        ["search", "digits", "--out", "OUT", "--trials", "0"],
        ["tolerance", "digits", "--out", "OUT", "--set", "mode=none"],
        ["train", "--lam", "-1"],
        ["report", "OUT"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_bad_input_is_answered_without_waiting_for_torch(arguments, tmp_path):
    arguments = [str(tmp_path / "none") if each == "OUT" else each for each in arguments]
    modules = loaded(f"import sys; from cluster.cli import main; assert main({arguments}) == 2; print(*sys.modules)")
    assert not {"torch", "ray"} & modules


def test_inline_needs_no_ray(tmp_path):
    code = (
        "import sys; sys.modules['ray'] = None\n"  # importing it raises
        "from tune.cli import main\n"
        f"sys.exit(main(['sweep', 'digits', '--out', {str(tmp_path / 'o')!r}, '--executor', 'inline',"
        " '--set', 'seed=0', '--set', 'lam=1e-3', '--set', 'epochs=1', '--set', 'mode=ours']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(os.listdir(tmp_path / "o" / "trials")) == 2


def test_without_ray_the_default_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "tune.ray_connection", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = run(capsys, "sweep", "digits", "--out", tmp_path / "o")
    assert (code, err) == (2, "gcsr: executor: ray needs ray, which is not installed; expected inline\n")
    assert not (tmp_path / "o").exists()


def test_failures_are_named_also_where_a_time_limit_ended_the_sweep(capsys, tmp_path, monkeypatch):
    def broken(config, job, device, group=None):
        if config.seed == 0:
            raise ValueError("on purpose")
        raise OutOfTimeError
        yield

    monkeypatch.setattr("tune.trial.trial_steps", broken)
    sweep = ["sweep", "digits", "--out", tmp_path / "o", "--executor", "inline", "--cohort", 1, "--set", "mode=none"]
    code, out, err = run(capsys, *sweep, "--time-limit", "9m")
    assert code == 130
    assert "3 trials, 1 run now: 1 failed" in out
    assert "ValueError: on purpose" in err.splitlines()[-2]
    assert "the time limit left 2 trials" in err.splitlines()[-1]


def test_failed_trials_are_exit_code_1_and_are_tried_again(capsys, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("on purpose")

    sweep = ["sweep", "digits", "--out", tmp_path / "o", "--executor", "inline", "--set", "lam=1e-3"]
    sweep += ["--set", "mode=baseline", "--set", "epochs=1", "--set", "seed=0", "--set", "regularizer=l2"]
    with monkeypatch.context() as patched:
        patched.setattr("tune.trial.training", broken)
        code, _, err = run(capsys, *sweep)
    assert code == 1
    assert "on purpose" in err
    assert "1 of 1 trials failed" in err
    code, _, err = run(capsys, *sweep)
    assert code == 2
    assert "--resume" in err
    assert run(capsys, *sweep, "--resume")[0] == 0
    code, out, _ = run(capsys, "report", tmp_path / "o", "--format", "json")
    assert code == 0
    assert json.loads(out)["failures"] == []


def test_a_damaged_file_is_named_and_skipped(capsys, tmp_path):
    sweep = ["sweep", "digits", "--out", tmp_path / "o", "--executor", "inline", "--set", "lam=1e-3"]
    sweep += ["--set", "mode=baseline", "--set", "epochs=1", "--set", "seed=[0,1]", "--set", "regularizer=l2"]
    assert run(capsys, *sweep)[0] == 0
    victim = sorted((tmp_path / "o" / "trials").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:100])
    code, out, err = run(capsys, "report", tmp_path / "o")
    assert code == 2
    assert victim.name in err
    assert "1 of 2 trials ended" in out
    assert run(capsys, *sweep, "--resume")[0] == 0
    assert run(capsys, "report", tmp_path / "o")[0] == 0


def test_train_over_two_workers_is_the_same_experiment(tmp_path):
    arguments = ["train", "--model", "mlp2", "--mode", "ours_orig", "--lam", "1e-3", "--epochs", "5", "--json"]
    results = []
    for workers in ("1", "2"):
        saved = ["--save", str(tmp_path / f"{workers}.pt")]
        command = [sys.executable, "-m", "tune.cli", *arguments, *saved, "--workers", workers]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        results.append(json.loads(done.stdout))
    one, two = results
    assert (one["world_size"], two["world_size"]) == (1, 2)
    assert one["imposed_fraction"] == two["imposed_fraction"]
    assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-3)
    images = load_dataset("digits").test_images
    torch.testing.assert_close(*(load_network(tmp_path / f"{n}.pt")(images) for n in (1, 2)), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_a_gpu_that_is_full_or_fails_is_one_line(kind, capsys, monkeypatch, tmp_path):
    def broken(*args, **kwargs):
        raise kind("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(tune.train, "train", broken)
    saved = tmp_path / "c.pt"
    saved.touch()
    code, out, err = run(capsys, "train", "--model", "mlp1", "--device", "cpu", "--checkpoint", saved)
    assert (code, out) == (1, "")
    line = "device: cpu failed: CUDA out of memory. Tried to allocate 2 GiB.; the same command goes on from"
    assert err == f"gcsr: {line} {saved}\n"


@contextlib.contextmanager
def killed_at_the_end(command):
    """A command in a session of its own, of which nothing is left afterwards."""
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)


@pytest.mark.slow(10)
def test_train_under_torchrun():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tune.cli"]
    command += ["train", "--model", "mlp2", "--mode", "baseline", "--lam", "1e-3", "--epochs", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["world_size"] == 2


@pytest.mark.slow(10)
def test_a_worker_of_torchrun_that_is_lost_ends_the_others_without_a_traceback_of_ours(tmp_path):
    saved = tmp_path / "c.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tune.cli"]
    command += ["train", "--model", "mlp2", "--epochs", "100000", "--checkpoint", str(saved)]
    with killed_at_the_end(command) as started:
        while not saved.exists() and started.poll() is None:
            time.sleep(0.1)
        workers = [p for p in psutil.Process(started.pid).children() if "tune.cli" in title(p)]
        workers[1].kill()
        _, err = started.communicate(timeout=120)
    ours = [line for line in err.splitlines() if line.startswith("gcsr: ")]
    assert len(ours) == 1  # torchrun tells the other to end, which may be sooner than it misses the lost one
    assert f"--checkpoint {saved}" in ours[0] or f"lost; the same command goes on from {saved}" in ours[0]
    assert "trainer.py" not in err


@pytest.mark.slow(10)
def test_ctrl_c_in_a_terminal_while_workers_start_is_one_line():
    command = [sys.executable, "-m", "tune.cli", "train", "--model", "mlp2", "--epochs", "100000", "--workers", "2"]
    with killed_at_the_end(command) as started:
        while started.poll() is None and not any(
            "forkserver" in title(p) for p in psutil.Process(started.pid).children()
        ):
            time.sleep(0.01)
        time.sleep(0.5)  # in the middle of its imports
        os.killpg(started.pid, signal.SIGINT)  # a terminal's reaches all
        _, err = started.communicate(timeout=120)
    assert (started.returncode, err) == (130, "gcsr: interrupted; nothing was saved (--checkpoint FILE would)\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--address", "127.0.0.1:1"], "address: '127.0.0.1:1' cannot be reached"),
        (["--address", "nowhere"], "address: 'nowhere' is not allowed; expected HOST:PORT"),
        (["--threads", "999"], "threads: a trial that needs 999 CPU"),
        (["--set", "workers=999"], "workers: 999 workers"),
        (["--set", "workers=0"], "workers: 0 is not allowed"),
        (["--set", "workers=2", "--executor", "inline"], "workers: 2 is not allowed with --executor inline"),
    ],
)
def test_what_the_cluster_cannot_do_leaves_nothing_behind(arguments, words, tmp_path, capfd):
    assert main(["sweep", "digits", "--out", str(tmp_path / "a" / "b"), *arguments]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert words in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"executor": "slurm"}, "executor: 'slurm' is not allowed; expected one of ray, inline"),
        ({"cohort": 0}, "cohort: 0 is not allowed; expected auto, or an integer of at least 1"),
        ({"max_concurrent": 1.5}, "max_concurrent: 1.5 is not allowed; expected an integer of at least 1"),
        ({"gpu_share": 7}, "gpu_share: 7 is not allowed; expected a number from 0.01 to 1"),
        ({"gpu_share": 0.001}, "gpu_share: 0.001 is not allowed"),
        ({"gpu_share": float("nan")}, "gpu_share: nan is not allowed"),
        ({"time_limit": -1.0}, "time_limit: -1.0 is not allowed"),
        ({"time_limit": 1.0, "cohort": 4}, "cohort: 4 is not allowed with a time limit"),
        ({"executor": "inline", "wait": 5.0}, "wait: 5.0 is not allowed; expected it with --executor ray"),
    ],
)
def test_run_options_are_checked_wherever_they_are_made(options, words):
    with pytest.raises(InvalidInputError, match=re.escape(words)):
        RunOptions(**options)
