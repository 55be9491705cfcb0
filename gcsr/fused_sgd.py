"""torch.optim.SGD's step, the penalty and the count in one pass over memory (float32)."""

import inspect
import itertools
import operator
from collections.abc import Sequence

import torch
import torch.optim.optimizer as torch_optimizer
from torch import Tensor

from gcsr.coherence import Counts
from gcsr.errors import ConfigError
from gcsr.memory_pass import MemoryPass
from gcsr.names import Regularizer
from gcsr.parameter_pass import ParameterPass, can_pass

__all__ = ["FusedSGD", "QuickSGD"]


class QuickSGD(torch.optim.SGD):
    """`torch.optim.SGD` that is there at once.

    torch marks these methods as nothing to compile, and the first call of a marked one imports the compiler: two
    seconds, many times what the rest of a short trial takes.
    """

    add_param_group = inspect.unwrap(torch.optim.SGD.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.SGD.zero_grad)


class FusedSGD:
    """Does what `GatedOptimizer` asks of an inner `torch.optim.SGD`, without calling it.

    The momentum buffers stay in the inner optimizer's state, so its ``state_dict`` and its learning-rate schedulers
    notice no difference.

    Args:
        inner: an optimizer that `suits`.
        params: the regularized parameters, all of them ``inner``'s.
        slices: what this rank counts of them (`gcsr.coherence.counted_slices`).
        lam: target λ.
        regularizer: ``"l1"`` or ``"l2"``.
    """

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        params: Sequence[Tensor],
        slices: Sequence[tuple[int, int, int]],
        lam: float,
        regularizer: Regularizer,
    ) -> None:
        counted = {id(params[index]): (start, stop) for index, start, stop in slices}
        regularized = {id(p) for p in params}
        self._inner = inner
        self._l2 = regularizer == "l2"
        self._params = _parameters(inner)
        self._regularized = [id(p) in regularized for p in self._params]
        own = {index: counted[id(p)] for index, p in enumerate(self._params) if id(p) in counted}
        self._pass = ParameterPass(self._params, own, lam, regularizer)
        # Of each group, as it stands in the pass's table: lr, momentum, weight_decay, number of parameters.
        self._settings: list[tuple[float, float, float, int]] = []
        self._buffers: dict[int, Tensor] = {}  # index of a parameter → its momentum buffer

    @staticmethod
    def suits(inner: torch.optim.Optimizer) -> bool:
        """Whether ``inner`` is a plain SGD over parameters that the compiled pass can take."""
        params = _parameters(inner)
        if type(inner) not in (torch.optim.SGD, QuickSGD) or not can_pass(params):
            return False
        places = [p.data_ptr() for p in params if p.numel()]
        return len(set(places)) == len(places)  # torch counts first, and steps twice on what it is given twice

    def ready(self) -> bool:
        """Whether this step can be fused: called before every step, as hooks, groups and gradients may change."""
        inner = self._inner
        patched = inner.__dict__.get("step")  # by a scheduler, which only counts calls, or by the user
        if patched is not None and getattr(patched, "__wrapped__", None) is not type(inner).step:
            return False
        own = inner._optimizer_step_pre_hooks or inner._optimizer_step_post_hooks
        if own or torch_optimizer._global_optimizer_pre_hooks or torch_optimizer._global_optimizer_post_hooks:
            return False
        plain = not any(
            g["dampening"] or g["nesterov"] or g["maximize"] or isinstance(g["lr"], Tensor)  # not to be read every step
            for g in inner.param_groups
        )
        now = _parameters(inner)
        same = len(now) == len(self._params) and all(map(operator.is_, now, self._params))
        return plain and same and self._pass.point()

    def count(self) -> None:
        """Count eq. 9 over this rank's share."""
        self._pass.memory.run(count=True)

    def counts(self) -> Counts:
        """What was counted last."""
        return Counts(*self._pass.counts())

    def update(self, lam_t: Tensor, *, count: bool) -> None:
        """The step with ``lam_t`` (float32, 0-dim); with ``count`` it also counts what was there before it.

        Raises:
            ConfigError: a momentum buffer is not of its parameter's shape.
        """
        self.prepared().run(count=count, lam_t=lam_t)

    def prepared(self) -> MemoryPass:
        """The pass, that is to update next with all that is in the inner optimizer now.

        Raises:
            ConfigError: a momentum buffer is not of its parameter's shape.
        """
        self._fill()
        # Autograd is to notice that a graph from before the step is out of date, as after torch's own.
        torch.autograd.graph.increment_version([p for p in self._params if p.grad is not None])
        self._inner._opt_called = True  # type: ignore[attr-defined] # as the step that a scheduler wrapped would
        return self._pass.memory

    def after_capture(self) -> None:
        """See `gcsr.optim.GatedOptimizer.after_capture`."""
        self._pass.memory.after_capture()

    def refresh(self) -> None:
        """Let captured steps go on with the groups' learning rates, momenta and weight decays as they are now."""
        self._fill_settings()
        self._pass.memory.refresh()

    def _fill(self) -> None:
        """Write what is new since the last step into the pass's table."""
        self._fill_settings()
        state, index = self._inner.state, 0
        for group in self._inner.param_groups:
            for p in group["params"]:
                entry = self._pass.memory.table[index]
                if group["momentum"] and p.grad is not None:
                    buffer = state[p].get("momentum_buffer")
                    if buffer is None or buffer.dtype != torch.float32 or buffer is not self._buffers.get(index):
                        self._buffers[index] = buffer = self._adopt(p, buffer)
                    entry.m = buffer.data_ptr()
                else:
                    entry.m = None
                index += 1

    def _fill_settings(self) -> None:
        groups = self._inner.param_groups
        settings = [(float(g["lr"]), g["momentum"], g["weight_decay"], len(g["params"])) for g in groups]
        if settings == self._settings:
            return
        self._settings = settings
        entries = zip(self._pass.memory.table, self._regularized, strict=True)
        for lr, momentum, decay, members in settings:
            for entry, regularized in itertools.islice(entries, members):
                entry.lr, entry.momentum = lr, momentum
                entry.decay, entry.l2, entry.l1 = decay, 0.0, 0.0
                if regularized:
                    entry.l2, entry.l1 = (2.0, 0.0) if self._l2 else (0.0, lr)

    def _adopt(self, p: Tensor, buffer: Tensor | None) -> Tensor:
        """The inner optimizer's momentum buffer, in the parameter's layout; made if there is none yet."""
        if buffer is None:  # of zeros, torch.optim.SGD's first step is a step like any other
            buffer = torch.zeros_like(p, memory_format=torch.preserve_format)
        elif (buffer.shape, buffer.dtype, buffer.device) != (p.shape, p.dtype, p.device):
            found, expected = (f"{t.dtype} {list(t.shape)} on {t.device}" for t in (buffer, p))
            raise ConfigError("momentum_buffer", found, f"{expected}, as its parameter")
        elif buffer.stride() != p.stride():
            buffer = torch.empty_like(p).copy_(buffer)
        self._inner.state[p]["momentum_buffer"] = buffer
        return buffer


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
