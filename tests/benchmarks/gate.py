"""The gate beside a plain fused SGD step, on the parameters of VGG-16."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gcsr import GatedOptimizer, regularized_parameters
from gcsr.coherence import CoherenceCounter, count_reference
from gcsr.models import build_model
from gcsr.precision import autocast
from tests.benchmarks.timing import Timing, paired

__all__ = ["counting", "optimizer_step", "training_step"]

LAM = 1e-7  # imposes and shrinks as any λ, and leaves the weights what they are over thousands of steps
LR = 1e-7


def _vgg16(device: str) -> nn.Module:
    torch.manual_seed(0)
    model = build_model("vgg16", input_shape=(3, 32, 32), classes=100).to(device)
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 1e-3
    return model


def _concatenating(params: list[Tensor]) -> tuple[Tensor, Tensor]:
    g = torch.cat([p.grad.flatten() for p in params if p.grad is not None])
    w = torch.cat([p.detach().flatten() for p in params])
    learning = g != 0
    return (learning & (torch.sign(g) == torch.sign(g + 2 * LAM * w))).sum(), learning.sum()


def _plain(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), LR, momentum=0.9, weight_decay=2 * LAM, fused=True)


def _gated(model: nn.Module, regularizer: str, mode: str) -> GatedOptimizer:
    inner = torch.optim.SGD(model.parameters(), LR, momentum=0.9, fused=True)
    params = regularized_parameters(model)
    return GatedOptimizer(inner, params, regularizer=regularizer, mode=mode, lam=LAM)  # type: ignore[arg-type]


def counting(device: str, rounds: int) -> dict[str, Timing]:
    """Counting coherence (eq. 9) only; beside it what reading the same bytes takes."""
    model = _vgg16(device)
    params = regularized_parameters(model)
    counter = CoherenceCounter(params, LAM, "l2")
    with torch.no_grad():
        return paired(
            {
                "plain SGD(momentum, weight_decay, fused) step": _plain(model).step,
                "count, ours": counter.count,
                "torch.dot of the same gradients and weights": lambda: [
                    torch.dot(p.grad.view(-1), p.view(-1)) for p in params if p.grad is not None
                ],
                "count, ours without the compiled pass": counter._count_with_torch,
                "count, parameter by parameter": lambda: count_reference(
                    [p.grad for p in params if p.grad is not None], params, LAM, "l2"
                ),
                "count, on concatenated tensors": lambda: _concatenating(params),
            },
            rounds=rounds,
            calls=5,
            device=device,
        )


def optimizer_step(device: str, rounds: int) -> dict[str, Timing]:
    """The whole method: count, decision, penalty or proximal step, momentum and step."""
    model = _vgg16(device)
    functions: dict[str, Callable[[], object]] = {"plain SGD(momentum, weight_decay, fused) step": _plain(model).step}
    for regularizer in ("l2", "l1"):
        for mode in ("baseline", "ours_orig"):
            functions[f"gated step, {regularizer} {mode}"] = _gated(model, regularizer, mode).step
    return paired(functions, rounds=rounds, calls=5, device=device)


def training_step(device: str, precision: str, rounds: int) -> dict[str, Timing]:
    """Forward, backward and step of VGG-16 on 128 CIFAR-100-shaped images."""
    model = _vgg16(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(128, 3, 32, 32, device=device)
    labels = torch.randint(100, (128,), device=device)

    def step(optimizer: torch.optim.SGD | GatedOptimizer) -> Callable[[], None]:
        def run() -> None:
            with autocast(precision, torch.device(device)):
                logits = model(images)
            optimizer.zero_grad()
            cross_entropy(logits.float(), labels).backward()
            optimizer.step()

        return run

    def functions() -> Iterator[tuple[str, Callable[[], None]]]:
        yield f"plain training step, {precision}", step(_plain(model))
        for regularizer in ("l2", "l1"):
            yield (
                f"gated training step, {precision}, {regularizer} ours_orig",
                step(_gated(model, regularizer, "ours_orig")),
            )

    return paired(dict(functions()), rounds=rounds, device=device)
