"""Networks that people bring: a function of a Python module builds one, as ``torchvision.models:resnet18`` does."""

import contextlib
import importlib
import traceback
import weakref
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gcsr.archive import packed, unpacked
from gcsr.errors import ConfigError, InvalidInputError
from gcsr.fused_sgd import QuickSGD
from gcsr.optim import GatedOptimizer
from gcsr.randomness import undisturbed
from gcsr.regularized import regularized_parameters

__all__ = ["check_learning", "check_workers", "own_network"]

_SEEN: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()  # modules with weights to be trained, of all networks so far


def own_network(name: str, *, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A network of the user's own, on the CPU, in training mode. Two images are answered to see that it can.

    Args:
        name: ``MODULE:FUNCTION``. The function is called with ``num_classes``, as torchvision's are, and returns a
            module: float32 images ``[N, C, H, W]`` → logits ``[N, classes]``. It draws its initialization from torch's
            global generator, as every torch layer does.
        input_shape: ``(C, H, W)``.
        classes: size of the output.

    Raises:
        InvalidInputError: there is no such function, or what it builds is no such network.
    """
    build = _function(name)
    try:
        network = build(num_classes=classes)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise InvalidInputError(f"model: {name} with num_classes={classes} failed: {_reason(error)}") from error
    if not isinstance(network, nn.Module):
        raise InvalidInputError(f"model: {name} returned {type(network).__name__}; expected a torch.nn.Module")
    with _told(f"the network of {name} failed on images of shape {list(input_shape)}"), torch.no_grad():
        logits = network.eval()(torch.zeros(2, *input_shape, dtype=torch.float32))  # also shapes lazy layers
    _check_logits(f"the network of {name} answers two images", logits, 2, classes)
    for weights, parameter in network.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise InvalidInputError(f"model: the network of {name} has no shape for {weights}, unused by its answers")
    if not any(weights.numel() for weights in regularized_parameters(network)):
        raise InvalidInputError(f"model: the network of {name} has no weights to regularize")
    trained = {each for each in network.modules() if any(p.requires_grad for p in each.parameters(recurse=False))}
    if not trained.isdisjoint(_SEEN):  # the weights of another trial, which has trained them
        raise InvalidInputError(
            f"model: {name} returned weights that it had returned before; expected new ones for each trial"
        )
    _SEEN.update(trained)
    return network.train()


def _check_logits(text: str, logits: object, images: int, classes: int) -> None:
    if not isinstance(logits, Tensor) or logits.shape != (images, classes) or not logits.is_floating_point():
        found = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise InvalidInputError(f"model: {text} with {found}; expected logits [{images}, {classes}]")


def _function(name: str) -> Callable[..., object]:
    module, _, function = name.partition(":")
    try:
        with _nothing_set():
            imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a script without a guard runs when it is imported
        raise InvalidInputError(f"model: {name} cannot be imported: {_reason(error)}") from error
    try:
        found: object = attrgetter(function)(imported)
    except Exception as error:  # perhaps it is an installed module that has the name of the user's
        file = getattr(imported, "__file__", None) or "Python itself"
        raise InvalidInputError(f"model: {name} cannot be imported from {file}: {_reason(error)}") from error
    if not callable(found):
        raise InvalidInputError(f"model: {name} is {type(found).__name__}; expected a function that builds a network")
    return found


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """What the user's code raises as one line."""
    try:
        yield
    except Exception as error:
        raise InvalidInputError(f"model: {what}: {_reason(error)}") from error


@contextlib.contextmanager
def _nothing_set() -> Iterator[None]:
    """Around an import: a process's first trial, which imports the module, is to end as one that finds it imported.

    What a module seeds, draws or sets for all of torch as it is imported is taken back: the trial's seed is set by now.
    """
    gpu = torch.cuda.is_initialized()
    threads = torch.get_num_threads()
    try:
        with undisturbed(torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu"), "fp32"):
            yield
    finally:
        torch.set_num_threads(threads)


def _reason(error: BaseException) -> str:
    """What the user's code raised, and where."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    folders = (f"{Path(file).parent}/" for file in (__file__, torch.__file__, importlib.__file__))
    not_theirs = ("<frozen", *folders)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(not_theirs)]
    return f"{text} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else text


def check_learning(
    name: str, network: nn.Module, images: int, *, input_shape: tuple[int, int, int], classes: int, workers: int = 1
) -> None:
    """Take a step of training with a network of `own_network`, which is of no use afterwards.

    Args:
        name: ``MODULE:FUNCTION``.
        network: as it was built.
        images: how many there are in the batch; none, as where workers outnumber the images of the last batch.
        input_shape: ``(C, H, W)``.
        classes: size of the output.
        workers: processes that are to train the network together.

    Raises:
        InvalidInputError: it cannot learn from such a batch, or not be trained by so many workers.
    """
    if any(isinstance(each, nn.SyncBatchNorm) for each in network.modules()) and workers > 1:
        images = max(images, 2)  # it normalizes by all workers' images
    few = f"{images} images" if images != 1 else "1 image"
    batch = few if images > 1 else f"a last batch of {few}, which another batch_size may avoid"
    failed = f"the network of {name} cannot learn from {batch}"
    with _told(failed):
        logits = network(torch.zeros(images, *input_shape, dtype=torch.float32))
    _check_logits(f"in training, the network of {name} answers {few}", logits, images, classes)
    parameters = list(network.parameters())
    with _told(failed):
        cross_entropy(logits.float(), torch.zeros(images, dtype=torch.int64), reduction="sum").backward()
        optimizer = GatedOptimizer(
            QuickSGD(parameters, 0.0), regularized_parameters(network), regularizer="l2", mode="none", lam=0.0
        )
        optimizer.step()
    _check_state(name, network)
    if workers > 1 and any(p.requires_grad and p.grad is None for p in parameters):
        raise ConfigError("workers", workers, f"1 for {name}, some of whose weights have no part in its answers")


def _check_state(name: str, network: nn.Module) -> None:
    """Raise `InvalidInputError` if a checkpoint with the network's state could be written and not be read."""
    with _told(f"the state_dict of {name} cannot be saved"):
        saved = packed(network.state_dict())
    try:
        unpacked(saved, torch.device("cpu"))
    except ValueError:
        raise InvalidInputError(
            f"model: the state_dict of {name} holds other than tensors and plain values, which cannot be read again"
        ) from None


def check_workers(name: str, network: nn.Module, workers: int) -> None:
    """Raise `ConfigError` if so many processes cannot train the network together as one would.

    Batch normalization would see each one's share of a batch.
    """
    kinds = nn.modules.batchnorm._BatchNorm
    alone = any(isinstance(each, kinds) and not isinstance(each, nn.SyncBatchNorm) for each in network.modules())
    if workers > 1 and alone:
        raise ConfigError("workers", workers, f"1 for {name}, whose batch normalization sees one process's images only")
