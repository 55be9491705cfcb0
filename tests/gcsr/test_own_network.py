"""Networks of a user's own: trained as gcsr's are, and refused with one line where they are none."""

import functools
import random
import sys

import numpy as np
import pytest
import torch
from torch import nn

import gcsr.graph
from gcsr import ConfigError, InvalidInputError, TrialConfig, train
from gcsr.checkpoint import Checkpointer, FileStorage
from gcsr.cohort import train_cohort
from gcsr.graph import capture_for
from gcsr.interleaving import Interleaved
from gcsr.learner import memory_layout
from gcsr.models import build_model
from gcsr.own_network import check_learning, check_workers, own_network
from gcsr.trainer import training
from tests.gcsr.comparing import measured

HERE = "tests.gcsr.own_networks"


def of_digits(name):
    return own_network(f"{HERE}:{name}", input_shape=(1, 8, 8), classes=10)


def test_it_is_trained_as_the_same_network_of_gcsrs_is(digits, by_autograd):
    fields = {"mode": "ours", "lam": 3e-3, "gamma": 2, "epochs": 5, "seed": 3}
    own = train(TrialConfig(model=f"{HERE}:plain", **fields), digits)
    assert measured(own) == measured(train(TrialConfig(model="mlp2", **fields), digits))


@pytest.mark.parametrize("name", ["normalized", "Residual", "Drawing"])
def test_it_learns_and_a_resumed_trial_is_an_undisturbed_one(name, digits, tmp_path):
    config = TrialConfig(model=f"{HERE}:{name}", mode="ours_orig", regularizer="l1", lam=1e-4, epochs=4)
    whole = train(config, digits)
    assert whole.status == "finished" and whole.test_accuracy > 0.8
    assert whole.parameters == sum(p.numel() for p in of_digits(name).parameters())

    def kill(record):
        if record.epoch == 2:
            raise KeyboardInterrupt

    def checkpointer():
        return Checkpointer(FileStorage(tmp_path / "state.pt"))

    with pytest.raises(KeyboardInterrupt):
        train(config, digits, checkpointer=checkpointer(), on_epoch=kill)
    assert measured(train(config, digits, checkpointer=checkpointer())) == measured(whole)


def test_pythons_and_numpys_random_numbers_are_the_trials_own_and_the_callers_come_back(digits):
    def results(*trials):
        steps = [functools.partial(training, trial, digits) for trial in trials]
        ended = Interleaved(steps, torch.device("cpu"), "fp32", len(steps))
        return [each.result.train_loss for each in sorted(ended, key=lambda each: each.place)]

    trials = [TrialConfig(model=f"{HERE}:Drawing", epochs=2, seed=seed) for seed in (0, 1)]
    before = random.getstate(), np.random.get_state()[1].tolist()
    alone = [train(trial, digits).train_loss for trial in trials]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert alone[0] != alone[1]
    assert results(*trials) == alone


def test_its_images_and_weights_lie_in_memory_as_in_a_plain_loop(digits):
    trained = train(TrialConfig(model=f"{HERE}:ViewingPictures", epochs=2, precision="bf16"), digits)
    assert trained.status == "finished"
    layouts = [
        memory_layout(TrialConfig(model=model, dataset="cifar10")) for model in ("alexnet", "mlp2", f"{HERE}:plain")
    ]
    assert layouts == [torch.channels_last, torch.contiguous_format, torch.contiguous_format]


def test_torchvisions_networks_are_built_by_their_names():
    network = build_model("torchvision.models:resnet18", input_shape=(3, 32, 32), classes=7)
    assert sum(p.numel() for p in network.parameters()) == 11_180_103  # 11,689,512 with the 1,000 classes of ImageNet
    assert network.training


def test_a_look_at_it_leaves_it_as_it_was_initialized():
    torch.manual_seed(0)
    network = of_digits("normalized")
    assert network[1].num_batches_tracked == 0 and network[1].running_mean.abs().sum() == 0
    torch.manual_seed(0)
    other = of_digits("normalized")
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True)
    )
    assert {module.training for module in network.modules()} == {True}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere:net", "nowhere:net cannot be imported: ModuleNotFoundError: No module named 'nowhere'$"),
        (f"{HERE}:nothing", "cannot be imported from /.*/own_networks.py: AttributeError: .*no attribute 'nothing'"),
        ("random:net", r"random:net cannot be imported from /.*/random\.py: AttributeError: .*no attribute 'net'"),
        ("sys:net", "sys:net cannot be imported from Python itself: AttributeError"),
        (f"{HERE}:CONSTANT", "CONSTANT is int; expected a function"),
        (f"{HERE}:raises", r"failed: KeyError: 'no weights.*here' \(own_networks.py, line \d+\)$"),
        (f"{HERE}:exits", "failed: SystemExit: 3"),
        (f"{HERE}:takes_nothing", "with num_classes=10 failed: TypeError"),
        (f"{HERE}:no_module", "returned str; expected a torch.nn.Module"),
        (f"{HERE}:too_many_logits", r"with torch.float32 \[2, 11\]; expected logits \[2, 10\]"),
        (f"{HERE}:of_other_images", r"failed on images of shape \[1, 8, 8\]: RuntimeError: "),
        (f"{HERE}:answers_classes", "with torch.int64"),
        (f"{HERE}:without_weights", "no weights to regularize"),
        (f"{HERE}:with_a_layer_only_for_training", "has no shape for auxiliary.weight, unused by its answers"),
    ],
)
def test_what_is_no_network_is_one_clear_line(name, words):
    with pytest.raises(InvalidInputError, match=words) as caught:
        own_network(name, input_shape=(1, 8, 8), classes=10)
    assert str(caught.value).startswith("model: ") and "\n" not in str(caught.value)


def test_a_script_that_ends_when_it_is_imported_is_one_clear_line(tmp_path, monkeypatch):
    (tmp_path / "a_script_of_mine.py").write_text("import sys\n\nsys.exit('usage: ...')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InvalidInputError, match=r"SystemExit: usage: ... \(a_script_of_mine.py, line 3\)"):
        own_network("a_script_of_mine:net", input_shape=(1, 8, 8), classes=10)
    assert "a_script_of_mine" not in sys.modules


def test_what_a_module_does_to_torch_as_it_is_imported_changes_no_trial(digits, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "meddles.py").write_text(
        "import torch\nfrom tests.gcsr.own_networks import normalized as net\n\n"
        "torch.manual_seed(7)\ntorch.set_default_dtype(torch.float64)\ntorch.set_grad_enabled(False)\n"
        "torch.set_num_threads(torch.get_num_threads() + 1)\ntorch.backends.cudnn.benchmark = True\n"
    )
    threads = torch.get_num_threads()
    config = TrialConfig(model="meddles:net", epochs=1)
    first = train(config, digits)
    assert "meddles" in sys.modules
    assert (torch.get_num_threads(), torch.get_default_dtype()) == (threads, torch.float32)
    assert torch.is_grad_enabled() and not torch.backends.cudnn.benchmark
    assert measured(train(config, digits)) == measured(first)


@pytest.mark.parametrize(
    ("name", "images", "words"),
    [
        ("AnswersTwiceInTraining", 2, r"in training, .* 2 images with tuple; expected logits \[2, 10\]$"),
        (
            "normalized_by_batch",
            1,
            "learn from a last batch of 1 image, .*: ValueError: Expected more than 1 value",
        ),
        (
            "Viewing",
            0,
            r"learn from a last batch of 0 images, .*: RuntimeError: .*\(own_networks.py, line \d+\)$",
        ),
        ("WithoutGradient", 2, "cannot learn from 2 images: RuntimeError: .*does not require grad"),
        ("sparse", 2, r"cannot learn from 2 images: ConfigError: .*expected dense gradients$"),
        (
            "Remembering",
            2,
            r"the state_dict of .*:Remembering holds other than tensors and plain values, which cannot",
        ),
    ],
)
def test_what_cannot_learn_is_one_clear_line(name, images, words):
    with pytest.raises(InvalidInputError, match=words) as caught:
        check_learning(f"{HERE}:{name}", of_digits(name), images, input_shape=(1, 8, 8), classes=10)
    assert str(caught.value).startswith("model: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "images", "workers"),
    [("normalized", 1, 1), ("normalized_by_batch", 2, 1), ("Viewing", 1, 4), ("Residual", 0, 4), ("PartlyUsed", 1, 1)],
)
def test_what_can_learn_is_let_through(name, images, workers):
    check_learning(f"{HERE}:{name}", of_digits(name), images, input_shape=(1, 8, 8), classes=10, workers=workers)


def test_synchronized_batch_normalization_may_see_one_image():
    network = nn.SyncBatchNorm.convert_sync_batchnorm(of_digits("normalized_by_batch"))
    check_learning("mine:net", network, 1, input_shape=(1, 8, 8), classes=10, workers=2)


def test_several_workers_need_a_gradient_of_every_weight():
    with pytest.raises(ConfigError, match="workers: 2 is not allowed; expected 1 for mine:net, some of whose weights"):
        check_learning("mine:net", of_digits("PartlyUsed"), 2, input_shape=(1, 8, 8), classes=10, workers=2)


def test_weights_of_another_trial_are_refused():
    first = of_digits("around_one_body")
    with pytest.raises(InvalidInputError, match="around_one_body returned weights that it had returned before"):
        of_digits("around_one_body")
    first[1].requires_grad_(False)  # as of a body that was trained before, and stays as it is
    of_digits("around_one_body")
    first[1].requires_grad_(True)


def test_batch_normalization_needs_one_process_unless_it_is_synchronized():
    network = of_digits("normalized")
    check_workers("mine:net", network, 1)
    check_workers("mine:net", of_digits("Residual"), 4)
    with pytest.raises(ConfigError, match="workers: 2 is not allowed; expected 1 for mine:net"):
        check_workers("mine:net", network, 2)
    check_workers("mine:net", nn.SyncBatchNorm.convert_sync_batchnorm(network), 2)


def test_it_is_in_no_cohort(digits):
    with pytest.raises(ConfigError, match=r"model: .*a network that gcsr knows"):
        train_cohort([TrialConfig(model=f"{HERE}:plain")], digits)


@pytest.mark.parametrize(("asked", "gcsrs", "own"), [(None, True, False), ("0", False, False), ("1", True, True)])
def test_its_steps_are_captured_only_where_that_is_asked_for(asked, gcsrs, own, monkeypatch):
    monkeypatch.setattr(gcsr.graph, "CudaCapture", lambda device: device)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("GCSR_GRAPHS", raising=False)
    if asked is not None:
        monkeypatch.setenv("GCSR_GRAPHS", asked)
    gpu = torch.device("cuda")
    assert (capture_for(gpu) is not None, capture_for(gpu, own_network=True) is not None) == (gcsrs, own)
    assert capture_for(torch.device("cpu"), own_network=True) is None
