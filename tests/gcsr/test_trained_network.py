"""A network that is kept gives, on images as they are, what its trial measured."""

import subprocess
import sys

import pytest
import torch

from gcsr import ConfigError, InvalidInputError, TrainedNetwork, TrialConfig, load_dataset, load_network, train
from gcsr.checkpoint import Checkpointer, FileStorage
from gcsr.cohort import train_cohort
from gcsr.metrics import sparsity

OWN = "tests.gcsr.own_networks"
KEPT = {
    "plain": ("digits", {"model": "mlp2", "mode": "ours_orig", "regularizer": "l1", "lam": 2e-3}),
    "from 0 to 1": ("digits", {"model": "mlp1", "inputs": "unit", "lr": 0.5}),
    "one's own": ("digits", {"model": f"{OWN}:normalized", "mode": "ours", "gamma": 1, "lam": 1e-3}),
    "a plain value": ("digits", {"model": f"{OWN}:Counting", "lr": 0.5}),
    "convolutions": ("pictures", {"dataset": "cifar10", "model": "alexnet", "width": 0.1, "batch_size": 32}),
}


def accuracy(network, data):
    with torch.no_grad():
        return (network(data.test_images).argmax(1) == data.test_labels).double().mean().item()


def kept(config, data, path, monkeypatch, **options):
    """The trial's result and the network in the file that was written of it."""
    monkeypatch.setattr("gcsr.records.is_chance", lambda *_: False)  # these are trained for a moment only
    given = []
    result = train(config, data, on_network=given.append, **options)
    (network,) = given
    path.write_bytes(network.to_bytes())
    return result, load_network(path)


@pytest.mark.parametrize("case", KEPT)
def test_it_answers_as_it_did_in_its_trial(case, request, tmp_path, monkeypatch):
    fixture, fields = KEPT[case]
    data, config = request.getfixturevalue(fixture), TrialConfig(epochs=3, **fields)
    if config.inputs == "unit":
        data = load_dataset("digits", inputs="unit")
    result, network = kept(config, data, tmp_path / "n.pt", monkeypatch)
    assert network.config == config
    assert accuracy(network, data) == result.test_accuracy
    assert sparsity(network.network) == result.sparsity
    floats = data.test_images.double()  # as a mean of several images is
    torch.testing.assert_close(network(floats), network(data.test_images))
    assert torch.equal(network(data.test_images[:1]), network(data.test_images[:1])), "dropout is off"


def test_trained_in_pieces_it_is_the_same(digits, tmp_path, monkeypatch):
    config = TrialConfig(model="mlp2", epochs=4, mode="ours_orig", lam=1e-3)
    _, whole = kept(config, digits, tmp_path / "n.pt", monkeypatch)

    class StopHereError(Exception):
        pass

    def stop(record):
        if record.epoch == 2:
            raise StopHereError

    checkpoint = FileStorage(tmp_path / "c.pt")
    with pytest.raises(StopHereError):
        train(config, digits, checkpointer=Checkpointer(checkpoint), on_epoch=stop, on_network=lambda _: pytest.fail())
    for _ in range(2):  # the second time nothing is left to be trained
        _, resumed = kept(config, digits, tmp_path / "r.pt", monkeypatch, checkpointer=Checkpointer(checkpoint))
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_of_a_cohort_each_is_its_own_and_only_of_trials_that_finished(digits, tmp_path):
    fields = {"model": "mlp6", "epochs": 12}
    configs = [
        TrialConfig(mode="baseline", lam=0.05, **fields),
        TrialConfig(mode="none", lr=900.0, **fields),
        TrialConfig(mode="none", seed=1, lr=0.1, **fields),
        TrialConfig(mode="ours", gamma=8, lam=1e-3, seed=2, lr=0.1, **fields),
    ]
    given = []
    results = train_cohort(configs, digits, on_network=given.append)
    assert [result.status for result in results] == ["collapsed", "diverged", "finished", "finished"]
    assert [network.config for network in given] == configs[2:]
    for network, result in zip(given, results[2:], strict=True):
        (tmp_path / "n.pt").write_bytes(network.to_bytes())
        assert accuracy(load_network(tmp_path / "n.pt"), digits) == result.test_accuracy
    size = (tmp_path / "n.pt").stat().st_size
    assert size < 4 * results[3].parameters + 10_000, "the others' weights are not in its file"


def test_what_did_not_finish_has_none(digits):
    for fields in ({"lam": 0.05}, {"lr": 900.0, "mode": "none"}):
        result = train(TrialConfig(model="mlp6", epochs=10, **fields), digits, on_network=lambda _: pytest.fail())
        assert result.status in ("collapsed", "diverged")


def test_without_gcsr_the_weights_are_a_state_dict(digits, tmp_path, monkeypatch):
    _, network = kept(TrialConfig(model="mlp1", epochs=1), digits, tmp_path / "n.pt", monkeypatch)
    code = "import sys, torch; print(*torch.load(sys.argv[1], weights_only=True)['weights'])"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "n.pt"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(network.network.state_dict())


def test_loading_leaves_the_random_state_alone(digits, tmp_path, monkeypatch):
    kept(TrialConfig(model="mlp1", epochs=1), digits, tmp_path / "n.pt", monkeypatch)
    before = torch.get_rng_state()
    load_network(tmp_path / "n.pt")
    assert torch.equal(torch.get_rng_state(), before)


def test_files_that_are_none_are_named(digits, tmp_path, monkeypatch):
    path = tmp_path / "n.pt"
    _, network = kept(TrialConfig(model="mlp1", epochs=1), digits, path, monkeypatch)
    whole = path.read_bytes()
    middle = len(whole) // 2
    damaged = (b"", b"text", whole[:-100], whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(InvalidInputError, match=r"^network: .*n\.pt is no network of gcsr, or damaged \(.+\)$"):
            load_network(path)
    torch.save({"network_format": 99}, path)
    with pytest.raises(InvalidInputError, match="format 99 instead of 1"):
        load_network(path)
    path.unlink()
    train(network.config, digits, checkpointer=Checkpointer(FileStorage(path)))
    with pytest.raises(InvalidInputError, match="no 'network_format'"):
        load_network(path)
    with pytest.raises(FileNotFoundError):
        load_network(tmp_path / "nowhere.pt")


def test_a_function_that_builds_another_network_now_is_told(digits, tmp_path, monkeypatch):
    data = digits
    config = TrialConfig(model=f"{OWN}:plain", epochs=1)
    kept(config, data, tmp_path / "n.pt", monkeypatch)
    monkeypatch.setattr(f"{OWN}.plain", sys.modules[OWN].Residual)
    with pytest.raises(InvalidInputError, match=f"n.pt has no weights for what {OWN}:plain builds: "):
        load_network(tmp_path / "n.pt")


def test_a_config_that_is_not_allowed_is_no_networks(digits, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr("gcsr.trained_network.packed", lambda values: saved.append(values) or b"")
    monkeypatch.setattr("gcsr.records.is_chance", lambda *_: False)
    train(TrialConfig(model="mlp1", epochs=1), digits, on_network=TrainedNetwork.to_bytes)
    torch.save(saved[0] | {"config": saved[0]["config"] | {"lam": -1}}, tmp_path / "n.pt")
    with pytest.raises(InvalidInputError) as caught:
        load_network(tmp_path / "n.pt")
    assert not isinstance(caught.value, ConfigError)
    assert "lam: -1 is not allowed" in str(caught.value)
