"""What each rank counts of plain parameters; shards are in `test_distributed`."""

from hypothesis import given
from hypothesis import strategies as st

from gcsr.sharding import flat_slices


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(1, 9))
def test_shares_are_a_partition(sizes, world_size):
    shares = [flat_slices(sizes, rank, world_size) for rank in range(world_size)]
    elements = [(i, e) for share in shares for i, start, stop in share for e in range(start, stop)]
    assert elements == [(i, e) for i, size in enumerate(sizes) for e in range(size)]
    lengths = [sum(stop - start for _, start, stop in share) for share in shares]
    assert max(lengths) - min(lengths) <= 1
