"""A cohort: several trials of one network trained as one batched computation, each with its own gate.

Small networks leave a GPU idle between kernels. Here the weights of K trials are stacked, one batched kernel serves all
of them, and λ, μ, γ, mode, regularizer, seed and learning rate are vectors of K. Every trial sees the images, the
initialization and the decisions that it would have had alone; sums are rounded in another order. On a CPU no kernel is
small, and trials are faster one by one.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn.functional import cross_entropy

from gcsr.augment import crop_and_flip, draw_crops
from gcsr.cohort_step import stepper
from gcsr.collapse import constant_loss, has_collapsed
from gcsr.config import COHORT_FIELDS, TrialConfig
from gcsr.data import Dataset, check_data
from gcsr.errors import ConfigError
from gcsr.evaluation import CorrectAnswers
from gcsr.gate_metrics import GateMetrics
from gcsr.graph import ReplayedStep, capture_for
from gcsr.models import new_network
from gcsr.names import is_own_network
from gcsr.precision import autocast
from gcsr.randomness import seed_generators, undisturbed
from gcsr.records import EpochRecord, TrialResult, summarized
from gcsr.regularized import regularized_parameters
from gcsr.trained_network import TrainedNetwork

__all__ = ["train_cohort"]


def train_cohort(
    configs: Sequence[TrialConfig],
    data: Dataset,
    *,
    stop_collapsed: bool = False,
    on_network: Callable[[TrainedNetwork], None] | None = None,
) -> list[TrialResult]:
    """Train all trials together, without checkpoints.

    Args:
        configs: trials with the same `gcsr.config.cohort_key`.
        data: their data set, with their hold-out.
        stop_collapsed: end early, as ``collapsed``, the trials that cannot learn any more (`gcsr.collapse`).
        on_network: gets the network of each trial that ``finished``.

    Returns:
        One result a trial, in order; ``seconds`` is its share of the cohort's.

    Raises:
        ConfigError: the trials differ in what they must have in common, their network is a user's own, or the data
            are not theirs.
    """
    if not configs:
        return []
    for config in configs:
        for name in COHORT_FIELDS:
            if getattr(config, name) != getattr(configs[0], name):
                expected = f"{getattr(configs[0], name)!r}, as the cohort's first trial has"
                raise ConfigError(name, getattr(config, name), expected)
    if is_own_network(configs[0].model):
        raise ConfigError("model", configs[0].model, "a network that gcsr knows, as others may not be stackable")
    check_data(configs[0], data)
    with undisturbed(data.train_images.device, configs[0].precision):
        cohort = _Cohort(configs, data, stop_collapsed)
        for epoch in range(configs[0].epochs):  # type: ignore[arg-type]
            cohort.train_epoch(epoch)
            if not cohort.configs:
                break
        results = cohort.results()
        if on_network is not None:
            for network in cohort.networks():
                on_network(network)
        return results


class _Cohort:
    """Trials in motion; those that ended early leave it, so that the rest is faster."""

    def __init__(self, configs: Sequence[TrialConfig], data: Dataset, stop_collapsed: bool) -> None:
        self.configs, self.data, self.device = list(configs), data, data.train_images.device
        self.places = list(range(len(configs)))  # where in the caller's order each of them is
        self.ended: dict[int, TrialResult] = {}
        self.constant_loss = constant_loss(data.train_labels) if stop_collapsed else math.inf
        self.first = configs[0]
        models = [self._built(config) for config in configs]
        regularized = {id(p) for p in regularized_parameters(models[0])}
        self.regularized = [name for name, p in models[0].named_parameters() if id(p) in regularized]
        self.parameters = sum(p.numel() for p in models[0].parameters())
        stacked, _ = stack_module_state(models)
        self.weights: dict[str, Tensor] = {name: p.detach().requires_grad_() for name, p in stacked.items()}
        self.stepper = stepper(self.weights, self.regularized, configs, {})
        self.capture = capture_for(self.device)
        self.size = sum(self.weights[name][0].numel() for name in self.regularized)
        self.skeleton = models[0].to("meta")
        self.lrs = [config.lr for config in configs]
        self.generators = [torch.Generator(self.device).manual_seed(config.seed) for config in configs]
        self.gates = [config.gate() for config in configs]
        self.inputs = None if self.first.augment else data.normalized(data.train_images)
        self._set_up_steps()
        self.records: list[list[EpochRecord]] = [[] for _ in configs]

    def _set_up_steps(self) -> None:
        """What steps read, for the trials that are in the cohort now."""
        self.stepper.set_lrs(self.lrs)
        self.step = ReplayedStep(self.capture, self.stepper.after_capture)
        # Of the running epoch: steps, π, imposed, |g|, loss.
        self.sums = torch.zeros(len(self.configs), 5, dtype=torch.float64, device=self.device)
        self.correct = CorrectAnswers((len(self.configs),), self.device, self.capture)
        self.lam = torch.tensor([config.lam for config in self.configs], dtype=torch.float32, device=self.device)
        self.mu = torch.tensor([gate.mu for gate in self.gates], dtype=torch.float64, device=self.device)
        self.by_pi = torch.tensor([gate.decides_by_pi() for gate in self.gates], device=self.device)
        self.certain = torch.zeros_like(self.by_pi)  # λ is imposed in this epoch, where that does not depend on π

    def _built(self, config: TrialConfig) -> nn.Module:
        seed_generators(config.seed, self.device)
        return new_network(config, self.data)

    def train_epoch(self, epoch: int) -> None:
        """One pass of every trial over its own order of the training images, and the measurements."""
        began = time.perf_counter()
        self._choose_gammas(epoch)
        if epoch:  # as torch's StepLR does, to the last bit
            pairs = list(zip(self.lrs, self.configs, strict=True))
            lrs = [lr if epoch % c.lr_decay_epochs else lr * c.lr_decay for lr, c in pairs]
            if lrs != self.lrs:
                self.lrs = lrs
                self.stepper.set_lrs(lrs)
        self.certain.copy_(torch.tensor([gate.imposed_in(epoch) for gate in self.gates]))
        images = len(self.data.train_labels)
        order = torch.stack([torch.randperm(images, generator=g, device=self.device) for g in self.generators])
        self.sums.zero_()
        crops = None
        if self.inputs is None:
            crops = torch.stack([draw_crops(order.shape[1], generator) for generator in self.generators])
        for low in range(0, order.shape[1], self.first.batch_size):
            batch = slice(low, low + self.first.batch_size)
            rows = order[:, batch]
            self.step(self._step, None, rows.shape[1], rows, *(() if crops is None else (crops[:, batch],)))
        self._record(epoch, self.sums, began)

    def _step(self, size: int, rows: Tensor, crops: Tensor | None = None) -> None:
        """Train each trial on its ``rows`` ``[K, size]``."""
        loss, grads = self._losses(self._batch(rows, crops), self.data.train_labels[rows])
        with torch.no_grad():
            pi, grad_sum = self.stepper.coherence(grads)
            imposed = torch.where(self.by_pi, pi > self.mu, self.certain)
            self.stepper.update(grads, imposed * self.lam)
            ones = torch.ones_like(pi)
            measured = (ones, pi, imposed.double(), grad_sum, loss.double() * size)
            self.sums += torch.stack(measured, 1)

    def _choose_gammas(self, epoch: int) -> None:
        for k, (gate, records) in enumerate(zip(self.gates, self.records, strict=True)):
            self.gates[k] = gate.with_gamma(epoch, records[-1].pi if records else None)

    def _batch(self, rows: Tensor, crops: Tensor | None) -> Tensor:
        """Network input ``[K, B, C, H, W]`` for rows ``[K, B]``."""
        if self.inputs is not None:
            return self.inputs[rows]
        assert crops is not None
        images = crop_and_flip(self.data.train_images[rows.flatten()], crops.flatten(0, 1))
        network_input = self.data.normalized(images)
        return network_input.view(*rows.shape, *network_input.shape[1:])

    def _logits(self, images: Tensor, *, same: bool) -> Tensor:
        """Float32 logits ``[K, B, classes]``; with ``same`` all trials get the images ``[B, C, H, W]``."""

        def one(weights: dict[str, Tensor], batch: Tensor) -> Tensor:
            logits: Tensor = functional_call(self.skeleton, weights, (batch,))
            return logits

        every = torch.func.vmap(one, in_dims=(0, None if same else 0), randomness="different")
        with autocast(self.first.precision, self.device):
            logits: Tensor = every(self.weights, images)
        return logits.to(torch.float32)

    def _losses(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy of each trial's batch, ``[K]``, and its gradients, stacked like the parameters."""
        logits = self._logits(images, same=False)
        each = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        loss = each.view(labels.shape).mean(1)
        grads = torch.autograd.grad(loss.sum(), list(self.weights.values()))
        return loss.detach(), dict(zip(self.weights, grads, strict=True))

    @torch.no_grad()
    def _record(self, epoch: int, sums: Tensor, began: float) -> None:
        data, count = self.data, len(self.configs)
        self.skeleton.eval()
        test, *held_out = [self.correct.count(self._answers, images, labels) for images, labels in data.evaluated]
        self.skeleton.train()
        everything = [p.flatten(1) for p in self.weights.values()]
        nonzero = torch.stack([(p != 0).sum(1) for p in everything]).sum(0)
        absolute = [self.weights[name].flatten(1).abs().sum(1, dtype=torch.float64) for name in self.regularized]
        rows = torch.stack(
            [
                *sums.T,
                test.double(),
                1 - nonzero.double() / self.parameters,
                torch.stack(absolute).sum(0) / self.size,
                (held_out[0] if held_out else test).double(),
            ]
        ).T.tolist()
        seconds = (time.perf_counter() - began) / count
        ended: dict[int, Literal["diverged", "collapsed"]] = {}
        for k, (steps, pi, imposed, grad_sum, loss, correct, sparse, weight_mean, held) in enumerate(rows):
            if not all(map(math.isfinite, (grad_sum, loss, weight_mean))):
                ended[k] = "diverged"
                continue
            gate = GateMetrics.of_sums(steps, pi, imposed, grad_sum, lam=self.configs[k].lam, size=self.size)
            self.records[k].append(
                EpochRecord(
                    epoch=epoch,
                    train_loss=loss / len(data.train_labels),
                    test_accuracy=correct / len(data.test_labels),
                    val_accuracy=None if data.val_labels is None else held / len(data.val_labels),
                    pi=gate.pi,
                    imposed_fraction=gate.imposed_fraction,
                    grad_abs_mean=gate.grad_abs_mean,
                    weight_abs_mean=weight_mean,
                    sparsity=sparse,
                    lr=self.lrs[k],
                    lam_effective=gate.lam_effective,
                    seconds=seconds,
                )
            )
            if has_collapsed(self.records[k], self.constant_loss):
                ended[k] = "collapsed"
        if ended:
            self._leave(ended)

    def _leave(self, ended: Mapping[int, Literal["diverged", "collapsed"]]) -> None:
        """Take out the trials that ended, and stack the rest anew."""
        for k, why in ended.items():
            self.ended[self.places[k]] = self._result(k, why)
        stay = [k for k in range(len(self.configs)) if k not in ended]
        for name in ("configs", "places", "lrs", "gates", "generators", "records"):
            kept = getattr(self, name)
            setattr(self, name, [kept[k] for k in stay])
        if not stay:
            return
        momentum = {name: buffer[stay] for name, buffer in self.stepper.momentum().items()}
        self.weights = {name: w.detach()[stay].requires_grad_() for name, w in self.weights.items()}
        self.stepper = stepper(self.weights, self.regularized, self.configs, momentum)
        self._set_up_steps()

    def _answers(self, images: Tensor) -> Tensor:
        return self._logits(self.data.normalized(images), same=True).argmax(2)

    def results(self) -> list[TrialResult]:
        """How each trial ended, in the caller's order."""
        for k, place in enumerate(self.places):
            self.ended[place] = self._result(k, None)
        return [self.ended[place] for place in sorted(self.ended)]

    def networks(self) -> Iterator[TrainedNetwork]:
        """Those of the trials that finished; `results` comes first."""
        for k, place in enumerate(self.places):
            if self.ended[place].status == "finished":
                network = copy.deepcopy(self.skeleton)
                weights = {name: stacked[k].detach().clone() for name, stacked in self.weights.items()}
                network.load_state_dict(weights, assign=True)
                yield TrainedNetwork.of(self.configs[k], network, self.data)

    def _result(self, k: int, ended: Literal["diverged", "collapsed"] | None) -> TrialResult:
        return summarized(
            self.records[k],
            self.data,
            ended=ended,
            gamma_used=self.gates[k].gamma_in_use,
            parameters=self.parameters,
        )
