import contextlib
import errno
import functools
import itertools
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import tune.trial
import tune.units
from gcsr import InvalidInputError, TrialConfig, load_dataset, load_network
from gcsr.errors import OutOfTimeError
from gcsr.interleaving import finished
from gcsr.parallel import run_workers
from tests.tune.stores import ended
from tune.cli import main
from tune.inline_executor import InlineExecutor
from tune.job import SweepJob, checkpoint_name
from tune.node_data import UnfitNodeError
from tune.recorder import Recorder
from tune.run_options import RunOptions
from tune.spec import SweepSpec
from tune.store import Store
from tune.sweep import run_sweep
from tune.trial import StoredCheckpoint, blame_machine, choose_device, trial_steps
from tune.units import run_unit


def job(tmp_path, **fields):
    return SweepJob(experiment="test", store=str(tmp_path), **fields)


def outcomes_of(configs, job):
    return list(itertools.chain.from_iterable(run_unit(configs, job)))


@pytest.mark.parametrize(
    ("model", "device", "asked", "threads"),
    [("alexnet", "cpu", "auto", 6), ("mlp6", "cpu", "auto", 1), ("alexnet", "cuda", "auto", 1), ("mlp6", "cpu", 3, 3)],
)
def test_all_threads_for_convolutions_on_a_cpu_and_one_for_all_else(model, device, asked, threads):
    config = TrialConfig(dataset="cifar10", model=model)
    assert tune.trial.threads_for(config, torch.device(device), asked, 6) == threads


@pytest.mark.parametrize(
    ("gpus", "names", "refused"),
    [
        (0, {"auto": "cpu", "cpu": "cpu"}, ["cuda", "cuda:0", "tpu", "meta", ""]),
        (2, {"auto": "cuda", "cpu": "cpu", "cuda": "cuda", "cuda:1": "cuda:1"}, ["cuda:2", "xpu"]),
    ],
)
def test_a_gpu_is_found_without_taking_memory_of_it(gpus, names, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("memory was taken"))
    assert {name: str(choose_device(name)) for name in names} == names
    for name in refused:
        with pytest.raises(InvalidInputError, match=f"device: '{name}' is not allowed here"):
            choose_device(name)


def test_inline_sets_the_threads_of_each_unit_and_gives_back_what_there_was(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("tune.inline_executor.run_unit", lambda *_: seen.append(torch.get_num_threads()) or [])
    units = [[TrialConfig(dataset="cifar10", model=model)] for model in ("alexnet", "mlp6", "vgg16")]
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with InlineExecutor(job(tmp_path)) as executor:
            executor.run(units, None)
        assert seen == [3, 1, 3]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_cohort_writes_what_single_trials_write(tmp_path):
    spec = SweepSpec(
        experiment="test", grid={"model": "mlp2", "width": 0.5, "epochs": 3, "lam": 1e-3, "seed": [0, 1, 2]}
    )
    tables = []
    for cohort in (1, 2):
        store = Store(str(tmp_path / str(cohort)))
        run_sweep(spec, store, RunOptions(executor="inline", cohort=cohort, save_networks=True))
        tables.append(store.read_trials().table.to_pylist())
        assert len(store.epochs().to_table()) == 9
    for alone, together in zip(*tables, strict=True):
        same = ("trial_id", "status", "imposed_fraction", "test_accuracy", "parameters", "world_size")
        assert [alone[name] for name in same] == [together[name] for name in same]
        assert alone["train_loss"] == pytest.approx(together["train_loss"], rel=1e-4)
    networks = [sorted((tmp_path / name / "networks").iterdir()) for name in ("1", "2")]
    assert len(networks[0]) == sum(row["status"] == "finished" for row in tables[0]) > 0
    images = load_dataset("digits").test_images
    for alone, together in zip(*networks, strict=True):
        assert alone.name == together.name
        torch.testing.assert_close(load_network(alone)(images), load_network(together)(images), rtol=1e-3, atol=1e-3)


def test_a_trial_whose_network_cannot_be_kept_has_failed(tmp_path, monkeypatch):
    real = Store.write_bytes

    def full(store, name, data):
        if name.startswith("networks/") and "seed1" in name:
            raise OSError(errno.ENOSPC, "No space left on device", name)
        real(store, name, data)

    monkeypatch.setattr(Store, "write_bytes", full)
    monkeypatch.setattr("gcsr.records.is_chance", lambda *_: False)
    configs = [TrialConfig(model="mlp1", epochs=1, seed=seed) for seed in range(3)]
    for fields in ({"cohort": 1}, {"cohort": 3}):
        outcomes = outcomes_of(configs, job(tmp_path, save_networks=True, **fields))
        assert [o.row["status"] for o in outcomes] == ["finished", "failed", "finished"]
        assert "No space left on device" in outcomes[1].row["error"]
        assert len(list((tmp_path / "networks").iterdir())) == 2


def test_a_cohort_that_fails_falls_back_to_single_trials(tmp_path, monkeypatch):
    real = tune.units.train_cohort

    def broken(configs, data, **options):
        if len(configs) > 1 or configs[0].seed == 1:
            raise RuntimeError("out of memory")
        return real(configs, data, **options)

    monkeypatch.setattr(tune.units, "train_cohort", broken)
    configs = [TrialConfig(model="mlp1", width=0.1, epochs=1, seed=seed) for seed in range(2)]
    outcomes = outcomes_of(configs, job(tmp_path, cohort=2))
    assert [o.row["trial_id"] for o in outcomes] == [c.trial_id for c in configs]
    assert [o.row["status"] == "failed" for o in outcomes] == [False, True]
    assert "out of memory" in outcomes[1].row["error"]


def test_interleaved_trials_write_what_each_writes_alone(tmp_path):
    network = {"model": "mlp2", "width": 0.5, "epochs": 3}
    grid = network | {"mode": ["ours_orig", "baseline"], "lam": 1e-3, "seed": [0, 1]}
    spec = SweepSpec(experiment="test", grid=grid)
    tables = []
    for per_gpu in (1, 3):
        store = Store(str(tmp_path / str(per_gpu)))
        run_sweep(spec, store, RunOptions(executor="inline", cohort=1, trials_per_gpu=per_gpu))
        tables.append([
            {k: v for k, v in row.items() if k not in ("seconds", "finished_at")}
            for row in store.read_trials().table.sort_by("trial_id").to_pylist()
        ])  # fmt: skip
    assert tables[0] == tables[1]


def test_of_interleaved_trials_one_that_fails_leaves_the_others(tmp_path, monkeypatch):
    real = tune.trial.training

    def broken(config, data, **options):
        if config.seed == 1:
            raise RuntimeError("on purpose")
        return real(config, data, **options)

    monkeypatch.setattr(tune.trial, "training", broken)
    configs = [TrialConfig(model="mlp1", width=0.1, epochs=1, seed=seed) for seed in range(3)]
    outcomes = {o.row["trial_id"]: o.row for o in outcomes_of(configs, job(tmp_path, cohort=1, trials_per_gpu=3))}
    assert [outcomes[c.trial_id]["status"] for c in configs] == ["finished", "failed", "finished"]
    assert "on purpose" in outcomes[configs[1].trial_id]["error"]


def test_after_the_deadline_nothing_is_begun(tmp_path):
    configs = [TrialConfig(model="mlp1", width=0.1, epochs=1, seed=seed) for seed in range(2)]
    for fields in ({"cohort": 1}, {"cohort": 1, "trials_per_gpu": 2}, {"cohort": 2}):
        assert outcomes_of(configs, job(tmp_path, deadline=0.0, **fields)) == []


def stored(configs, job):
    """Run as an executor does; returns how many trials ended how."""
    store = Store(job.store)
    with Recorder(store, ended(store), []) as recorder:
        for outcome in outcomes_of(configs, job):
            recorder.ended(outcome)
    return recorder.statuses


def test_a_trial_that_failed_goes_on_from_its_checkpoint_when_it_runs_again(tmp_path, monkeypatch):
    monkeypatch.setattr(tune.trial, "_CHECKPOINT_SHARE", 1.0)
    config = TrialConfig(model="mlp1", width=0.1, epochs=5)
    disturbed = job(tmp_path / "disturbed", cohort=1, checkpoint_seconds=0.0)
    saved, write = [], StoredCheckpoint.write

    def full_once(storage, data):
        saved.append(data)
        if len(saved) == 3:
            raise OSError(28, "No space left on device")
        write(storage, data)

    monkeypatch.setattr(StoredCheckpoint, "write", full_once)
    assert stored([config], disturbed) == {"failed": 1}
    assert Store(disturbed.store).read_bytes(checkpoint_name(config.trial_id)) == saved[1]
    assert stored([config], disturbed) == {"finished": 1}
    assert len(saved) == 3 + 3, "epochs 2 to 4"
    assert Store(disturbed.store).read_bytes(checkpoint_name(config.trial_id)) is None
    whole = job(tmp_path / "whole", cohort=1)
    stored([config], whole)
    losses = [Store(each.store).read_trials().table["train_loss"].to_pylist() for each in (disturbed, whole)]
    assert losses[0] == losses[1]


def test_a_damaged_checkpoint_is_dropped_and_its_trial_begins_anew(tmp_path):
    config = TrialConfig(model="mlp1", width=0.1, epochs=1)
    store = Store(str(tmp_path))
    store.write_bytes(checkpoint_name(config.trial_id), b"PK\x03\x04 not a checkpoint")
    assert stored([config], job(tmp_path, cohort=1)) == {"finished": 1}
    assert store.read_bytes(checkpoint_name(config.trial_id)) is None


def overtaken(folder, group, device):
    """Each rank's clock says something else: the first one's counts."""
    config = TrialConfig(model="mlp1", width=0.1, epochs=1)
    now = time.time()
    for first, second in ((now + 600, now), (now, now + 600)):
        own = first if dist.get_rank(group) == 0 else second
        steps = trial_steps(config, job(Path(folder), deadline=own), device, group)
        if first > now:
            assert finished(steps).row["status"] == "finished"
        else:
            with pytest.raises(OutOfTimeError):
                finished(steps)


def test_ranks_agree_on_whether_the_deadline_has_passed(tmp_path):
    run_workers(functools.partial(overtaken, str(tmp_path)), 2, "cpu", threads=1)


@pytest.mark.parametrize("cohort", [1, 4])
def test_a_gpu_that_failed_is_no_fault_of_the_trials(cohort, tmp_path, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        yield

    monkeypatch.setattr(tune.trial, "training", broken)
    monkeypatch.setattr(tune.units, "train_cohort", lambda *args, **kwargs: next(broken()))
    arguments = ["sweep", "digits", "--executor", "inline", "--cohort", str(cohort), "--out", str(tmp_path / "o")]
    assert main(arguments) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gcsr: ")]
    assert "failed: CUDA error: an illegal memory access was encountered; every ended trial is stored; resume" in line
    assert len(Store(str(tmp_path / "o")).read_trials().table) == 0


def test_a_gpus_error_between_the_turns_of_trials_is_no_fault_of_theirs(tmp_path, monkeypatch):
    def broken(*args):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        yield

    monkeypatch.setattr(tune.trial, "Interleaved", broken)
    with pytest.raises(UnfitNodeError, match=r"device: (cpu|cuda) failed: CUDA error: an illegal memory"):
        outcomes_of([TrialConfig(epochs=1)], job(tmp_path, cohort=1))


def accelerator_error(text, code):
    error = torch.AcceleratorError(f"CUDA error: {text}")
    error.error_code = code
    return error


@pytest.mark.parametrize(
    ("raised", "stays", "blamed"),
    [
        (accelerator_error("an illegal memory access was encountered", 700), None, True),
        (accelerator_error("out of memory", 2), None, False),  # where a graph is made of what was captured
        (accelerator_error("operation not permitted when stream is capturing", 900), None, False),  # GCSR_GRAPHS=1
        (RuntimeError("Triton Error [CUDA]: an illegal memory access"), accelerator_error("illegal", 700), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), None, False),
        (torch.OutOfMemoryError("CUDA out of memory"), None, False),
    ],
)
def test_a_gpu_has_failed_where_its_error_stays(raised, stays, blamed, monkeypatch):
    def synchronize(device):
        if stays is not None:
            raise stays

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    with pytest.raises(UnfitNodeError) if blamed else contextlib.nullcontext():
        blame_machine(raised, torch.device("cuda"))


@pytest.mark.parametrize("cohort", [1, 4])
def test_where_the_planned_gpu_is_not_there_nothing_is_trained_and_no_trial_has_failed(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "zeros", lambda *_, device: (_ for _ in ()).throw(RuntimeError("no CUDA here")))
    configs = [TrialConfig(epochs=1, seed=seed) for seed in range(2)]
    with pytest.raises(UnfitNodeError, match="device: 'cuda' is not allowed here"):
        outcomes_of(configs, job(tmp_path, device="cuda", cohort=cohort))


def test_a_checkpoint_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, capsys):
    def full(store, name, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tune.trial, "_CHECKPOINT_SHARE", 1.0)
    config, disturbed = TrialConfig(model="mlp1", width=0.1, epochs=2), job(tmp_path, cohort=1, checkpoint_seconds=0.0)
    with monkeypatch.context() as patched:
        patched.setattr(Store, "write_bytes", full)
        (outcome,) = outcomes_of([config], disturbed)
    assert outcome.row["status"] == "finished"
    assert "cannot be written: [Errno 28] No space left on device" in capsys.readouterr().err
