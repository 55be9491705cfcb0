"""The gated optimizer: coherence (eq. 9), gate (eq. 8, 11) and update (eq. 2, 10) around any torch optimizer."""

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from gcsr.coherence import CoherenceCounter
from gcsr.errors import ConfigError, NonFiniteGradientError
from gcsr.fused_sgd import FusedSGD
from gcsr.gate import GAMMA, GAMMA_THRESHOLD, MAX_LAM, MU, Gate, is_integer, is_number
from gcsr.gate_metrics import GateMetrics
from gcsr.memory_pass import Decision, MemoryPass
from gcsr.names import REGULARIZERS, Mode, Regularizer
from gcsr.penalty import soft_threshold_
from gcsr.sharding import align_gradients, check_group, counted_slices, local
from gcsr.vote import Vote, all_agree

__all__ = ["GatedOptimizer"]

_LOCATED = frozenset({"_regularized", "_counter", "_fused"})  # attributes that know the parameters' places
_DECAYS = ("weight_decay", "lambd")  # the latter is `torch.optim.ASGD`'s
_FIXED = frozenset({"optimizer", "regularizer", "mode", "lam", "gamma", "gamma_threshold", "mu", "process_group"})


class GatedOptimizer:
    """Imposes strong L1 or L2 regularization only while the gradients stay coherent.

    Wraps any `torch.optim.Optimizer`; learning-rate schedulers stay attached to that inner optimizer::

        optimizer = GatedOptimizer(sgd, regularized_parameters(model), regularizer="l2", mode="ours", lam=1e-2)
        for epoch in range(epochs):
            optimizer.start_epoch(epoch)
            ...  # the usual zero_grad(), backward(), step()

    One `step` measures π with the target λ, asks the gate for ``lam_t`` (0 or λ) and updates: L2 adds
    ``lam_t·2w`` to ``p.grad`` before the inner optimizer sees it (so before its momentum); L1 lets the inner
    optimizer step on ∂L/∂w alone and then shrinks ``w ← S(w, lr·lam_t)`` with the learning rate of the
    parameter's group. Nothing is read back by the host in a step; `metrics` reads once.

    A plain float32 `torch.optim.SGD` is not called but fused with the method into one pass over memory
    (`gcsr.fused_sgd`), unless it has hooks. Ranks that hold the same weights must have the same hooks,
    and gradients of the same layout.

    ``step`` must see the gradient as it is averaged over workers, unscaled and before clipping. A ``GradScaler``
    unscales in its ``unscale_`` and ``step``: give both this optimizer, not the inner one. Clip in a
    ``register_step_pre_hook`` of the inner optimizer, which for L2 sees the penalty, too.
    Under data parallelism give ``process_group``: every rank counts its slice of the regularized parameters
    and one all-reduce of two integers makes the global π, the same on all ranks.

    Args:
        optimizer: the inner optimizer. Its own ``weight_decay`` (``lambd`` of ASGD) must be 0 for the regularized
            parameters.
        params: the regularized parameters R; each must belong to ``optimizer``.
        regularizer: ``"l2"`` (Ω = ‖w‖², so λ here is half of torch's ``weight_decay``) or ``"l1"``.
        mode: ``none``, ``baseline``, ``ours`` (eq. 11) or ``ours_orig`` (eq. 8).
        lam: λ, from 0 to `gcsr.gate.MAX_LAM`.
        gamma: γ of ``ours``: the number of epochs before λ applies, or ``"auto"``: the first epoch after one whose
            mean π passed ``gamma_threshold``.
        gamma_threshold: the mean π that ``gamma="auto"`` waits for, in [0, 1].
        mu: μ of ``ours_orig``, in [0, 1].
        process_group: ranks that hold the same gradients and weights, or (FSDP2) all that hold a shard of them;
            ``None`` for a single process.

    Raises:
        ConfigError: an argument is not allowed.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        params: Iterable[Tensor],
        *,
        regularizer: Regularizer,
        mode: Mode,
        lam: float,
        gamma: int | Literal["auto"] = GAMMA,
        gamma_threshold: float = GAMMA_THRESHOLD,
        mu: float = MU,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        params = _distinct(params)
        _check_is_group(process_group)
        if regularizer not in REGULARIZERS:
            raise ConfigError("regularizer", regularizer, "one of " + ", ".join(REGULARIZERS))
        if not is_number(lam) or not 0 <= lam <= MAX_LAM:
            raise ConfigError("lam", lam, f"a number from 0 to {MAX_LAM:g}")
        if gamma is None:
            raise ConfigError("gamma", gamma, "an integer ≥ 0, or auto")
        if isinstance(optimizer, type) or not hasattr(optimizer, "param_groups"):
            raise ConfigError("optimizer", optimizer, "a torch.optim.Optimizer")
        inside: set[int] = getattr(optimizer, "_regularized", set())  # a GatedOptimizer's: its π must not see a penalty
        if regularizer == "l2" and not inside.isdisjoint(map(id, params)):
            raise ConfigError("optimizer", type(optimizer).__name__, "one of other parameters, or l1 around l2")
        if any(group.get("differentiable") for group in optimizer.param_groups):
            raise ConfigError("optimizer", "differentiable=True", "one through whose steps nothing is differentiated")
        closure = inspect.signature(type(optimizer).step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ConfigError("optimizer", type(optimizer).__name__, "one whose step needs no closure")
        if not any(p.numel() for p in params):
            raise ConfigError("params", [list(p.shape) for p in params], "at least one regularized parameter")
        if any(p.device != params[0].device for p in params):
            raise ConfigError("params", "parameters on several devices", "all on one device")
        if regularizer == "l1" and not all("lr" in group for group in optimizer.param_groups):
            raise ConfigError("optimizer", type(optimizer).__name__, "one with learning rates, as l1 shrinks by lr·lam")
        self.optimizer = optimizer
        self.regularizer: Regularizer = regularizer
        self.lam = float(lam)
        self.gate = Gate(mode=mode, gamma=None if gamma == "auto" else gamma, gamma_threshold=gamma_threshold, mu=mu)
        self._params = params
        self._gamma_is_auto = gamma == "auto"
        self._process_group = process_group
        self._locate()
        self._size = sum(p.numel() for p in params)
        precise = any(p.dtype == torch.float64 for p in params)
        precision = torch.float64 if precise else torch.float32
        self._lam = torch.tensor(self.lam, dtype=precision, device=params[0].device)
        self._zero = torch.zeros_like(self._lam)
        # The epoch's decision in the modes that do not ask π, and its ``lam_t``: where captured steps look them up.
        self._certain = torch.zeros((), dtype=torch.bool, device=params[0].device)
        self._certain_lam = self._zero.clone()
        # Sums of the running epoch: steps, π, imposed, Σ|g| (of this rank's share; not finite if any was not).
        self._sums = torch.zeros(4, dtype=torch.float64, device=params[0].device)
        self._one = torch.ones((), dtype=torch.float64, device=params[0].device)
        self._enter(0)
        self._knows_epoch = self.gate.mode != "ours" or self.gate.imposed_in(0)
        self.last_pi = torch.zeros((), dtype=torch.float64, device=params[0].device)
        """π of the last step, 0-dim float64 on the device; NaN where a gradient was not finite. The next step may write
        over it: clone it to keep it."""
        self.last_lam = self._zero
        """``lam_t`` of the last step, 0-dim on the device: float32, float64 where a parameter is. The next step and
        `start_epoch` may write over it."""
        self._decision = Decision(
            by_pi=self.gate.decides_by_pi(),
            lam=self._lam,
            mu=torch.tensor(self.gate.mu, dtype=torch.float64, device=params[0].device),
            certain=self._certain,
            certain_lam=self._certain_lam,
            sums=self._sums,
            pi=self.last_pi.clone(),
            lam_t=self._zero.clone(),
        )

    def __setattr__(self, name: str, value: Any) -> None:
        """As for any object, but what the constructor was given stays: all else is built upon it.

        Raises:
            ConfigError: it is one of the constructor's arguments.
        """
        if name in _FIXED and "_decision" in vars(self):
            raise ConfigError(name, value, "the constructor's; for others, build another GatedOptimizer")
        super().__setattr__(name, value)

    def _locate(self, agreed: bool | None = None) -> None:
        """What depends on which tensors the parameters are, and where: a copy's are others.

        Args:
            agreed: whether all ranks can fuse their steps; None to ask them.
        """
        params, group = self._params, self._process_group
        self._regularized = {id(p) for p in params}
        _check_groups(self.optimizer, self._regularized)
        rank, world_size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
        if rank < 0:
            raise ConfigError("process_group", "a group without this process", "one that it is in")
        check_group(params, None if group is None else dist.get_process_group_ranks(group))
        self._counter = CoherenceCounter(params, self.lam, self.regularizer, rank=rank, world_size=world_size)
        self._fused: FusedSGD | None = None
        possible = FusedSGD.suits(self.optimizer)
        if agreed is None:
            agreed = all_agree(possible, params[0].device, group)
        if possible and agreed:
            slices = counted_slices(params, rank, world_size)
            self._fused = FusedSGD(self.optimizer, params, slices, self.lam, self.regularizer)

    def __deepcopy__(self, memo: dict[int, Any]) -> "GatedOptimizer":
        """Together with the model, as for any optimizer. The process group is the same, and its ranks are not asked."""
        group, copied = self._process_group, type(self).__new__(type(self))
        memo |= {id(self): copied, id(group): group}
        vars(copied).update(copy.deepcopy(self._movable(), memo))
        copied._locate(None if group is None else self._fused is not None)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """For pickle, together with the model as for any optimizer.

        Raises:
            TypeError: there is a process group.
        """
        if self._process_group is not None:
            raise TypeError("a GatedOptimizer with a process_group cannot be pickled: save its state_dict()")
        return self._movable()

    def _movable(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in _LOCATED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._locate()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The inner optimizer's parameter groups."""
        return self.optimizer.param_groups

    @property
    def epoch(self) -> int:
        """The epoch of the next steps, as `start_epoch` said."""
        return self._epoch

    @property
    def gamma(self) -> int | None:
        """γ in use: as given, or as ``gamma: auto`` chose it; None before it chose and in modes without γ."""
        return self.gate.gamma_in_use

    def start_epoch(self, epoch: int) -> None:
        """Tell the gate which epoch (from 0) the next steps belong to, and begin its sums anew.

        With ``gamma: auto`` this is where γ is chosen, which reads the ended epoch's mean π. An epoch that is begun
        again, as after a state from the middle of it was loaded, has not ended.

        Raises:
            ConfigError: it is no integer ≥ 0.
        """
        if not is_integer(epoch) or epoch < 0:
            raise ConfigError("epoch", epoch, "an integer ≥ 0")
        epoch = int(epoch)  # a saved state holds plain values
        if self.gate.mode == "ours" and self.gate.gamma is None and epoch > self.epoch:
            ended = self._sums.tolist()
            previous_pi = ended[1] / ended[0] if ended[0] else None
            self.gate = self.gate.with_gamma(epoch, previous_pi)
        self._enter(epoch)
        self._knows_epoch = True
        self._sums.zero_()

    def _enter(self, epoch: int) -> None:
        self._epoch = epoch
        certain = self.gate.imposed_in(epoch)
        self._certain.fill_(certain)
        self._certain_lam.fill_(self.lam if certain else 0.0)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the inner optimizer's."""
        self.optimizer.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One update. Afterwards ``p.grad`` of the regularized parameters may hold the penalty too.

        Mode ``ours`` warns once if it was not told which epoch this is.

        Raises:
            ConfigError: a group of regularized parameters was given a weight decay, or ``maximize``.
            TypeError: a closure is given: π belongs to one gradient, a closure would make several.
        """
        if closure is not None:
            raise TypeError("GatedOptimizer.step takes no closure: call backward() yourself, then step()")
        if not self._knows_epoch:
            self._knows_epoch = True
            missed = "start_epoch was not called before step: mode ours never imposes λ then"
            warnings.warn(f"GatedOptimizer: {missed}", stacklevel=3)  # beyond torch's decorator
        _check_settings(self.optimizer, self._regularized)
        if self._fused is not None and self._fused.ready():
            self._step_fused(self._fused)
        else:
            self._step_with_inner()

    def _step_fused(self, fused: FusedSGD) -> None:
        if self._process_group is None:
            self._prepared(fused).step(self._decision)
        elif self.gate.decides_by_pi():
            fused.count()
            fused.update(self._decide(Vote(fused.counts(), self._process_group)), count=False)
        else:  # the decision does not wait for the count: one pass does both
            fused.update(self._certain_lam, count=True)
            self._decide(Vote(fused.counts(), self._process_group))

    def prepared_pass(self) -> tuple[MemoryPass, Decision] | None:
        """For a caller that runs the next steps of this epoch itself: the pass over memory, and the decision.

        Gradients must stay where they are now. None where a step is not fused, or with several workers.

        Raises:
            ConfigError: a group of regularized parameters was given a weight decay, or ``maximize``.
        """
        _check_settings(self.optimizer, self._regularized)
        if self._process_group is not None or self._fused is None or not self._fused.ready():
            return None
        return self._prepared(self._fused), self._decision

    def _prepared(self, fused: FusedSGD) -> MemoryPass:
        """The pass, whose steps note their decisions."""
        self.last_pi, self.last_lam = self._decision.pi, self._decision.lam_t
        return fused.prepared()

    def _step_with_inner(self) -> None:
        by_pi, certain = self.gate.decides_by_pi(), self.gate.imposed_in(self.epoch)
        align_gradients(self._params)
        for p in self._params:  # torch's operations on lists change none that is only marked as negative
            if p.grad is not None and p.grad.is_neg():
                p.grad = p.grad.resolve_neg()
        vote = Vote(self._counter.count(), self._process_group)
        if self.regularizer == "l2" and (certain or by_pi):
            _own_gradients(self._params)
        if self.regularizer == "l2" and by_pi:
            strength = 2 * self._decide(vote)
            for p in self._params:
                if p.grad is not None:
                    g = local(p.grad)
                    g.addcmul_(local(p), strength.to(g.dtype))
            self.optimizer.step()
            return
        if self.regularizer == "l2" and certain:
            pairs = [(local(p.grad), local(p)) for p in self._params if p.grad is not None]
            if pairs:
                torch._foreach_add_([g for g, _ in pairs], [w for _, w in pairs], alpha=2 * self.lam)
        shrunk: list[tuple[float | Tensor, list[Tensor]]] = []
        if self.regularizer == "l1" and (certain or by_pi):
            self._step_noting(shrunk)
        else:
            self.optimizer.step()  # the all-reduce of the counts runs beside it
        lam_t = self._decide(vote)
        for lr, weights in shrunk:
            soft_threshold_(weights, (lam_t * lr).reshape(()))

    def _step_noting(self, learning: list[tuple[float | Tensor, list[Tensor]]]) -> None:
        """The inner optimizer's step. Notes each group's learning rate in it and the regularized weights that learn."""

        def note(*_: object) -> None:
            learning.clear()
            for group in self.optimizer.param_groups:
                lr = group["lr"].clone() if isinstance(group["lr"], Tensor) else group["lr"]
                weights = [local(p) for p in group["params"] if id(p) in self._regularized and p.grad is not None]
                learning.append((lr, weights))

        note()  # before hooks behind the step drop gradients, or set the next learning rate
        hooks = getattr(self.optimizer, "_optimizer_step_pre_hooks", None)
        last = self.optimizer.register_step_pre_hook(note) if hooks else None  # those may do so for this step
        try:
            self.optimizer.step()
        finally:
            if last is not None:
                last.remove()

    def _decide(self, vote: Vote) -> Tensor:
        """The step's ``lam_t``, once the vote is in; noted, so to be called once a step."""
        pi = vote.pi()
        by_pi = self.gate.decides_by_pi()
        imposed = self.gate.imposed_by(pi) if by_pi else self._certain
        self._sums += torch.stack((self._one, pi, imposed.double(), vote.grad_sum))
        self.last_pi = pi
        self.last_lam = torch.where(imposed, self._lam, self._zero) if by_pi else self._certain_lam
        return self.last_lam

    def after_capture(self) -> None:
        """To be called once a `torch.cuda.graph` that holds a `step` is captured, before its first replay.

        A replay does what the captured step did, but for what `refresh` brings up to date.
        """
        self._counter.after_capture()
        if self._fused is not None:
            self._fused.after_capture()

    def refresh(self) -> tuple[object, ...]:
        """Let captured steps go on with this epoch's decision and learning rates: once an epoch, after `start_epoch`.

        Call it on the stream of the replays. A `load_state_dict` gives the optimizer other momentum buffers: capture
        anew after it.

        Returns:
            What they cannot go on with: when it changes, capture anew. Where the step is fused, next to nothing.
        """
        groups = self.optimizer.param_groups
        if self._fused is not None and self._fused.ready():
            self._fused.refresh()
            return tuple(bool(group["momentum"]) for group in groups)
        # A tensor is read again in every replay; what it is, is what was captured.
        options = [
            (name, id(value) if isinstance(value, Tensor) else value)
            for group in groups
            for name, value in group.items()
            if name != "params"
        ]
        return (self.gate.imposed_in(self.epoch), *options)

    def metrics(self) -> GateMetrics:
        """The running epoch's means. Reads the device once (this waits for it); with several workers, call it on all.

        Raises:
            NonFiniteGradientError: a gradient of this epoch was NaN or infinite.
        """
        sums = self._sums.clone()
        if self._process_group is not None:
            dist.all_reduce(sums[3:], group=self._process_group)  # each rank summed |g| over its own share
        steps, pi, imposed, grad_sum = sums.tolist()
        if not math.isfinite(grad_sum):
            raise NonFiniteGradientError(f"a gradient was NaN or infinite in epoch {self.epoch}")
        return GateMetrics.of_sums(steps, pi, imposed, grad_sum, lam=self.lam, size=self._size)

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state and the gate's; tensors and plain values only (safe for ``weights_only``).

        With several workers the sum of |g| in the middle of an epoch is each rank's own.
        """
        gate = {"epoch": self.epoch, "gamma": self.gate.gamma, "sums": self._sums.clone()}
        return {"optimizer": self.optimizer.state_dict(), "gate": gate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`'s result. λ, mode, γ and μ are the constructor's, not the state's.

        Only with ``gamma="auto"`` the state's choice of γ counts.

        Raises:
            ConfigError: the state is not of a `GatedOptimizer`, or brings back a weight decay of regularized
                parameters, or ``maximize``.
        """
        names = list(state) if isinstance(state, Mapping) else []
        if not {"optimizer", "gate"} <= set(names):  # the inner optimizer's, perhaps
            found = ", ".join(map(str, names)) or state
            raise ConfigError("state", found, "what GatedOptimizer.state_dict() gave")
        self.optimizer.load_state_dict(state["optimizer"])
        if self._gamma_is_auto:
            self.gate = replace(self.gate, gamma=state["gate"]["gamma"])
        self._enter(state["gate"]["epoch"])
        self._knows_epoch = True
        self._sums.copy_(state["gate"]["sums"])
        _check_groups(self.optimizer, self._regularized)


def _distinct(params: Iterable[Tensor]) -> list[Tensor]:
    """Each parameter once, as tied weights are one. Raise `ConfigError` unless all are tensors of real numbers."""
    if isinstance(params, Tensor):
        raise ConfigError("params", f"one tensor of shape {list(params.shape)}", "a list of parameters")
    if not isinstance(params, Iterable):
        raise ConfigError("params", type(params).__name__, "a list of parameters")
    distinct = list({id(p): p for p in params}.values())
    for p in distinct:
        if not isinstance(p, Tensor):
            raise ConfigError("params", type(p).__name__, "parameters, as regularized_parameters(model) gives")
        if p.is_complex():
            raise ConfigError("params", str(p.dtype), "real parameters, as a complex gradient has no sign")
    return distinct


def _own_gradients(params: Sequence[Tensor]) -> None:
    """Give each gradient memory of its own, so that the penalty can be added in place.

    `torch.autograd.grad` may give one tensor for two parameters, or one number for all elements of one; and of ½‖w‖²
    somebody may say that w itself is the gradient.
    """
    places = {local(p).data_ptr() for p in params}
    for p in params:
        if p.grad is None:
            continue
        g = local(p.grad)
        if g.numel() and (g.data_ptr() in places or 0 in g.stride()):
            p.grad = p.grad.clone(memory_format=torch.contiguous_format)
        places.add(g.data_ptr())


def _check_is_group(group: object) -> None:
    """Raise `ConfigError` unless it is a process group, or None."""
    known = (dist.ProcessGroup, type(None)) if dist.is_available() else type(None)
    if not isinstance(group, known) and group is not dist.GroupMember.NON_GROUP_MEMBER:
        raise ConfigError("process_group", type(group).__name__, "a ProcessGroup, as mesh.get_group() of a DeviceMesh")


def _check_groups(optimizer: torch.optim.Optimizer, regularized: set[int]) -> None:
    """Raise `ConfigError` unless the optimizer has all regularized parameters, and leaves them to the gate."""
    _check_settings(optimizer, regularized)
    missing = regularized - {id(p) for group in optimizer.param_groups for p in group["params"]}
    if missing:
        found = f"{len(missing)} other parameter{'s' * (len(missing) > 1)}"
        raise ConfigError("params", found, "parameters of the given optimizer")


def _check_settings(optimizer: torch.optim.Optimizer, regularized: set[int]) -> None:
    """Raise `ConfigError` if a group would decay or maximize regularized parameters: asked in every step, as groups may
    be changed.
    """
    for index, group in enumerate(optimizer.param_groups):
        decay = next((name for name in _DECAYS if group.get(name)), None)
        if not (decay or group.get("maximize")) or not any(id(p) in regularized for p in group["params"]):
            continue
        if decay:
            raise ConfigError(f"param_groups[{index}].{decay}", group[decay], "0: the penalty is the gate's")
        raise ConfigError(f"param_groups[{index}].maximize", True, "False: minimize the negative, as π is of a loss")
