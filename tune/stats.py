"""Statistics as pure functions on arrays (DESIGN: Student's t intervals, Welch, Holm, Hedges' g); scipy computes."""

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats
from statsmodels.stats.multitest import multipletests

__all__ = ["ALPHA", "Comparison", "compare", "holm", "mean", "t_half_width"]

ALPHA = 0.05
_RESAMPLED = 3  # runs: of two, an interval would reach from the one to the other, and look like knowledge


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A sample beside a reference sample. What cannot be computed (fewer than two runs, no spread) is None.

    Attributes:
        relative: mean of the sample − mean of the reference, divided by the latter.
        p_value: Welch's t-test, two-sided.
        hedges_g: standardized difference, corrected for small samples.
        low, high: percentile bootstrap interval (95 %) of the difference of the means, of three runs or more; narrow
            for few: read it beside p.
        probability_of_improvement: that a run of the sample beats one of the reference, ties counted half
            (Mann and Whitney's U over all pairs).
    """

    relative: float | None
    p_value: float | None
    hedges_g: float | None
    low: float | None
    high: float | None
    probability_of_improvement: float


def mean(values: ArrayLike) -> float:
    """Arithmetic mean of one dimension of finite numbers.

    Raises:
        ValueError: empty, not one-dimensional, or not finite.
    """
    sample = _sample(values)
    return math.fsum(sample) / len(sample)  # whatever the order: equal samples have equal means


def t_half_width(values: ArrayLike, confidence: float = 0.95) -> float | None:
    """Half the width of Student's t interval of the mean; None for fewer than two values."""
    sample = _sample(values)
    if len(sample) < 2:
        return None
    if np.ptp(sample) == 0:
        return 0.0
    error = float(sample.std(ddof=1)) / math.sqrt(len(sample))
    return _t_quantile(len(sample) - 1, confidence) * error


@functools.lru_cache
def _t_quantile(freedom: int, confidence: float) -> float:
    """Cached: a store of a million trials has few sizes of samples."""
    return float(stats.t.ppf((1 + confidence) / 2, freedom))


def compare(sample: ArrayLike, reference: ArrayLike) -> Comparison:
    """Is the mean of ``sample`` different from that of ``reference``? See `Comparison`."""
    a, b = _sample(sample), _sample(reference)
    difference = float(a.mean() - b.mean())
    p_value = hedges = None
    if min(len(a), len(b)) >= 2 and np.ptp(a) + np.ptp(b) > 0:
        with warnings.catch_warnings():
            # Equal accuracies have no spread; only both samples without any would leave the test undefined.
            warnings.filterwarnings("ignore", "Precision loss occurred", RuntimeWarning)
            p_value = float(stats.ttest_ind(a, b, equal_var=False).pvalue)
        hedges = _hedges_g(a, b)
    low, high = _bootstrap(a, b) if min(len(a), len(b)) >= _RESAMPLED else (None, None)
    return Comparison(
        relative=difference / float(b.mean()) if b.mean() else None,
        p_value=p_value,
        hedges_g=hedges,
        low=low,
        high=high,
        probability_of_improvement=float(stats.mannwhitneyu(a, b).statistic) / (len(a) * len(b)),
    )


def _bootstrap(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    if np.ptp(a) + np.ptp(b) == 0:
        return float(a.mean() - b.mean()), float(a.mean() - b.mean())

    def difference(x: NDArray[np.float64], y: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return np.asarray(x.mean(axis=axis) - y.mean(axis=axis))

    interval = stats.bootstrap(
        (a, b), difference, vectorized=True, n_resamples=4999, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(interval.low), float(interval.high)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected after Holm for being looked at together; None stays None and is not counted."""
    present = [p for p in p_values if p is not None]
    if not present:
        return list(p_values)
    corrected = iter(multipletests(present, alpha=ALPHA, method="holm")[1])
    return [None if p is None else float(next(corrected)) for p in p_values]


def _hedges_g(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Hedges (1981): the difference in pooled standard deviations, times the exact small-sample correction."""
    freedom = len(a) + len(b) - 2
    pooled = math.sqrt(((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / freedom)
    if pooled == 0:  # a spread too small for its square
        return None
    correction = math.exp(special.gammaln(freedom / 2) - special.gammaln((freedom - 1) / 2)) / math.sqrt(freedom / 2)
    return float((a.mean() - b.mean()) / pooled * correction)


def _sample(values: ArrayLike) -> NDArray[np.float64]:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not len(sample) or not np.isfinite(sample).all():
        raise ValueError(f"a sample must be one dimension of at least one finite number, not {values!r}")
    return sample
