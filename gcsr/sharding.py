"""What one rank holds of the parameters, and what of it this rank counts: an even slice of plain ones, a shard of
FSDP2's.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from gcsr.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["align_gradients", "check_group", "counted_slices", "flat_slices", "local"]


def flat_slices(sizes: Sequence[int], rank: int, world_size: int) -> list[tuple[int, int, int]]:
    """The share of one rank when tensors of ``sizes`` elements are laid end to end and cut evenly.

    Returns:
        ``(tensor, start, stop)`` with element ranges inside each tensor. The shares of all ranks are disjoint,
        cover everything and differ by at most one element in length.
    """
    total = sum(sizes)
    low, high = total * rank // world_size, total * (rank + 1) // world_size
    slices, offset = [], 0
    for index, size in enumerate(sizes):
        start, stop = max(low - offset, 0), min(high - offset, size)
        if start < stop:
            slices.append((index, start, stop))
        offset += size
    return slices


def counted_slices(params: Sequence[Tensor], rank: int, world_size: int) -> list[tuple[int, int, int]]:
    """What one rank counts of ``params``: ``(tensor, start, stop)`` in elements of the local tensors' memory.

    Of parameters that every rank holds, its share (`flat_slices`); of sharded ones (FSDP2's DTensors), its shard,
    or nothing where another rank holds the same shard and counts it.
    """
    shards = [(i, shard) for i, p in enumerate(params) if (shard := _sharded(p)) is not None]
    whole = sorted(set(range(len(params))) - {i for i, _ in shards})
    shares = flat_slices([params[i].numel() for i in whole], rank, world_size)
    slices = [(whole[i], start, stop) for i, start, stop in shares]
    for index, shard in shards:
        if shard.to_local().numel() and _first_replica(shard):
            slices.append((index, 0, shard.to_local().numel()))
    return sorted(slices)


def check_group(params: Sequence[Tensor], ranks: Sequence[int] | None) -> None:
    """Raise `ConfigError` unless the ranks that add up their counts are those that the parameters are sharded over.

    Args:
        params: plain, or sharded.
        ranks: global ones; None for a single process.
    """
    for p in params:
        if getattr(p, "_fsdp_flattened", False):  # a shard of one, or of several, that looks like a whole one
            raise ConfigError("params", "a parameter of FullyShardedDataParallel", "those of fully_shard (FSDP2)")
        shard = _sharded(p)
        if shard is None:
            continue
        if any(place.is_partial() for place in shard.placements):
            raise ConfigError("params", f"a parameter with placements {shard.placements}", "shards and replicas")
        holders = shard.device_mesh.mesh.flatten().tolist()
        if set(holders) != set(holders[:1] if ranks is None else ranks):
            number = 1 if ranks is None else len(ranks)
            found = f"{number} {'other ' * (number == len(holders))}rank{'s' * (number > 1)}"
            raise ConfigError("process_group", found, f"the {len(holders)} ranks that hold the sharded parameters")


def align_gradients(params: Sequence[Tensor]) -> None:
    """Give the gradients of sharded parameters their parameters' placements.

    Autograd may leave the gradient of a replicated parameter as partial sums, which are neither to be counted nor to
    get the penalty on every rank.
    """
    for p in params:
        shard = _sharded(p)
        if shard is not None and p.grad is not None:
            grad = _sharded(p.grad)
            if grad is not None and grad.placements != shard.placements:
                p.grad = grad.redistribute(placements=shard.placements)


def local(tensor: Tensor) -> Tensor:
    """The part of ``tensor`` that this process holds, sharing its memory."""
    sharded = _sharded(tensor)
    return tensor if sharded is None else sharded.to_local()


def _sharded(tensor: Tensor) -> "DTensor | None":
    if type(tensor) in (Tensor, nn.Parameter):
        return None
    from torch.distributed.tensor import DTensor  # half a second that plain tensors need not pay

    return tensor if isinstance(tensor, DTensor) else None


def _first_replica(tensor: "DTensor") -> bool:
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:
        return False
    # Not is_shard(), which a shard of a shard (FSDP2 upon tensor parallelism) denies.
    return all(
        where == 0 or not place.is_replicate() for place, where in zip(tensor.placements, coordinate, strict=True)
    )
