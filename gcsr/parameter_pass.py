"""Passes over parameters and their ``.grad``, by whatever can run them where the parameters are."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gcsr.compiled import native_allowed
from gcsr.errors import ConfigError
from gcsr.memory_pass import MemoryPass, PassTensor
from gcsr.names import Regularizer
from gcsr.native_pass import NativePass
from gcsr.triton_support import has_triton

__all__ = ["ParameterPass", "ParameterShapes", "can_pass", "memory_pass"]


def can_pass(params: Sequence[Tensor]) -> bool:
    """Whether a pass can take these tensors: plain float32, dense in memory, on one device that has one."""
    return (
        len({p.device for p in params}) == 1
        and all(
            type(p) in (Tensor, torch.nn.Parameter)
            and p.dtype == torch.float32
            and p.layout == torch.strided
            and not p.is_neg()
            and _dense(p)
            for p in params
        )
        and _available(params[0].device.type)
    )


def _available(device_type: str) -> bool:
    if device_type == "cpu":
        return native_allowed() and NativePass.available()
    return has_triton(device_type)


def memory_pass(device: torch.device, tensors: Sequence[PassTensor], groups: int = 1) -> MemoryPass:
    """The pass of a device, over tensors that `can_pass`."""
    if device.type == "cuda":
        from gcsr.triton_pass import TritonPass  # importing Triton takes longer than all of gcsr

        return TritonPass(device, tensors, groups)
    return NativePass(tensors, groups)


def _dense(tensor: Tensor) -> bool:
    """No gaps and no overlaps, in whatever order of dimensions."""
    expected = 1
    for size, stride in sorted(zip(tensor.shape, tensor.stride(), strict=True), key=lambda pair: (pair[1], pair[0])):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


class ParameterShapes:
    """Shapes and devices of parameters, which must not change under an optimizer that knows where they lie.

    Args:
        params: as they are now.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self._params = list(params)
        self._known = [(p.shape, p.device) for p in self._params]

    def check(self) -> None:
        """Compare with what they are now.

        Raises:
            ConfigError: a parameter was resized or moved.
        """
        for p, (shape, device) in zip(self._params, self._known, strict=True):
            if p.shape != shape or p.device != device:
                found, expected = f"{list(p.shape)} on {p.device}", f"{list(shape)} on {device}"
                raise ConfigError("params", f"a parameter {found}", f"{expected}, as the optimizer was built for")


class ParameterPass:
    """Passes over parameters and their ``.grad``, in one group.

    Args:
        params: tensors that `can_pass`.
        counted: index of a parameter → the range of its elements that is counted here; none of the others'.
        lam: target λ.
        regularizer: ``"l1"`` or ``"l2"``.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        counted: Mapping[int, tuple[int, int]],
        lam: float,
        regularizer: Regularizer,
    ) -> None:
        tensors = []
        for index, p in enumerate(params):
            low, high = counted.get(index, (0, 0))
            tensors.append(PassTensor(elements=p.numel(), low=low, high=high, lam=lam, regularizer=regularizer))
        self.memory = memory_pass(params[0].device, tensors)
        self._params = list(params)
        self._shapes = ParameterShapes(params)
        self._strides = [p.stride() for p in self._params]

    def point(self) -> bool:
        """Look where weights and gradients are now; False if one is no float32 any more, or lies otherwise.

        So does one that is only marked as negative, as the imaginary part of a conjugate is.

        Raises:
            ConfigError: a parameter was resized or moved.
        """
        self._shapes.check()
        for entry, p, strides in zip(self.memory.table, self._params, self._strides, strict=True):
            g = p.grad
            if g is None:
                entry.g = None
                continue
            if p.dtype != torch.float32 or g.dtype != torch.float32 or g.layout != torch.strided:
                return False
            if p.stride() != strides or g.is_neg():
                return False
            if g.stride() != strides and not (g.is_contiguous() and p.is_contiguous()):
                return False
            entry.g, entry.w = g.data_ptr(), p.data_ptr()
        return True

    def counts(self) -> tuple[Tensor, Tensor, Tensor]:
        """`MemoryPass.totals` of the only group: 0-dim."""
        coherent, n, grad_sum = self.memory.totals()
        return coherent[0], n[0], grad_sum[0]
