"""The Pareto front, beside its definition."""

from hypothesis import given
from hypothesis import strategies as st

from tune.pareto import unbeaten

_pairs = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12)


@given(_pairs)
def test_nothing_that_is_left_out_is_unbeaten_and_nothing_in_it_is_beaten(pairs):
    ordered = sorted(pairs, reverse=True)
    expected = [p for p in ordered if not any(o != p and o[0] >= p[0] and o[1] >= p[1] for o in ordered)]
    assert unbeaten(ordered, lambda each: each) == expected
