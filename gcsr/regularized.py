"""Which parameters are regularized."""

from collections.abc import Iterator

from torch import nn
from torch.nn.utils import parametrize

__all__ = ["regularized_parameters"]

# Affine parameters of these are not regularized: decay on them does not simplify the function.
_NORMALIZATION = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


def regularized_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The regularized parameters R: all trainable ones but biases and the affine ones of normalization layers."""
    skipped = {
        id(parameter)
        for module in model.modules()
        for name, parameter in _own_parameters(module)
        if isinstance(module, _NORMALIZATION) or any(part.startswith("bias") for part in name.split("_"))
    }
    return [p for p in model.parameters() if p.requires_grad and id(p) not in skipped]


def _own_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Its parameters by name, without submodules'; what a parametrized one is made of has that one's name."""
    yield from module.named_parameters(recurse=False)
    if parametrize.is_parametrized(module):
        for name, parts in module.parametrizations.items():  # type: ignore[union-attr, operator]
            yield from ((name, part) for part in parts.parameters(recurse=False))
