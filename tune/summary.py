"""What a report says: settings, comparisons (Table 2), tolerance (Figure 7), compression (Table 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

__all__ = [
    "DIGITS",
    "NEAR",
    "REPORTED",
    "Asked",
    "Compared",
    "Compression",
    "Found",
    "Row",
    "Searched",
    "Setting",
    "Sparsest",
    "Summary",
    "Tolerance",
]

NEAR = 0.01  # one percentage point

DIGITS = 12  # after the point: means that agree in them are equal

REPORTED = ("none", "l2", "l1")  # regularizers in the order of each table and figure, which is the paper's

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A setting that a search asked for: of which of its lines, its number among that line's, and its trials' ids."""

    line: int
    number: int
    trial_ids: frozenset[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Searched:
    """What the search that filled a store did.

    ``tuned`` holds the fields beside the method's own that it chose, ``objectives`` the columns that it maximized,
    ``asked`` what each trial was asked for as, by its id.
    """

    tuned: frozenset[str]
    objectives: tuple[str, ...]
    asked: Mapping[str, Asked]

    def asked_as(self, trial_ids: Sequence[str]) -> Asked | None:
        """What a setting of these trials was asked for as; None if it was not."""
        return next((self.asked[trial_id] for trial_id in trial_ids if trial_id in self.asked), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One configuration over its seeds. Accuracies are fractions; half-widths are None for fewer than two seeds.

    ``n`` counts the trials behind the means: finished and collapsed ones, and diverged ones that have metrics;
    ``seeds``, ``accuracies`` and ``measured_ids`` are of these trials, ``trial_ids`` of all. ``failed`` trials are
    counted and nothing else. ``learned`` says that every trial ended above chance, so that none failed. ``network``
    names the family: it tells the fields in which families of one network and data set differ. ``tuned`` holds the
    fields beside the method's own that a search chose.

    ``suggestion`` counts the settings of a line of a search, and ``sought`` holds the means of what it maximized; None
    and empty for one that no search asked for. ``complete`` is False for one that a search gave fewer seeds than it
    has: the setting was pruned, or is under way.
    """

    dataset: str
    model: str
    network: str
    width: float
    regularizer: str
    mode: str
    lam: float
    mu: float | None
    gamma: str | None
    gamma_threshold: float | None
    recipe: Row
    tuned: Row
    n: int
    collapsed: int
    diverged: int
    failed: int
    learned: bool
    accuracy_mean: float | None
    accuracy_ci95: float | None
    val_accuracy_mean: float | None
    val_accuracy_ci95: float | None
    sparsity_mean: float | None
    pi_mean: float | None
    imposed_fraction_mean: float | None
    gamma_used_mean: float | None
    seconds_mean: float | None
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    measured_ids: tuple[str, ...]
    trial_ids: tuple[str, ...]
    suggestion: int | None
    sought: tuple[float, ...]
    complete: bool

    @property
    def family(self) -> Row:
        """The fields that what is found of its family has in common with it (`_OfFamily`)."""
        return {field.name: getattr(self, field.name) for field in fields(_OfFamily)}

    @property
    def selection(self) -> float | None:
        """What λ is chosen by: mean accuracy on the hold-out split, on the test split without one."""
        return self.val_accuracy_mean if self.val_accuracy_mean is not None else self.accuracy_mean

    @property
    def unmeasured(self) -> int:
        """How many diverged before their first epoch had ended."""
        return len(self.trial_ids) - self.failed - self.n

    @property
    def stopped(self) -> bool:
        """Whether a trial ended without having learned; a failed one shows neither this nor that it learns."""
        return self.collapsed + self.diverged > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _OfFamily:
    """What says which family a finding belongs to (as `tune.aggregate` groups them)."""

    dataset: str
    model: str
    network: str
    width: float
    recipe: Row


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared(_OfFamily):
    """The best-tuned setting of a gated mode beside the best-tuned baseline (Table 2); both have an accuracy.

    ``selected_on`` is the split that the settings were chosen on; None if each mode had but one, as after a refit.

    ``refitted`` says that the two modes were chosen on held-out images and that what was chosen was trained again on
    all images, with the same comparison elsewhere in the summary. A search stores both: many settings with its
    ``holdout``, and the best of each mode with 0. That is one question asked twice, so one of the two counts for Holm's
    correction: the refits, as they are the networks that one would use and nothing was left to choose among them. The
    comparison that chose has a p-value of its own and no corrected one.
    """

    regularizer: str
    mode: str
    baseline: Setting
    ours: Setting
    relative_improvement: float | None
    p_value: float | None
    p_value_holm: float | None
    hedges_g: float | None
    difference_low: float | None
    difference_high: float | None
    probability_of_improvement: float
    significant: bool | None
    significant_holm: bool | None
    tolerance_lam: float | None
    collapse_lam: float | None
    selected_on: str | None
    refitted: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance(_OfFamily):
    """Where a mode stops learning: the largest λ at which all seeds learn, the smallest at which one does not.

    ``tolerance_lam`` is None if there is no λ at which all do, ``collapse_lam`` if there is none at which one collapses
    or diverges: a λ with failed trials may be neither. ``tried`` counts the settings.
    """

    regularizer: str
    mode: str
    mu: float | None
    gamma: str | None
    gamma_threshold: float | None
    tolerance_lam: float | None
    collapse_lam: float | None
    tried: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Sparsest:
    """The sparsest of the L1 settings that are accurate enough; it has a sparsity and an accuracy.

    ``compression`` says how many times smaller it is than the best baseline; None for an empty network.
    """

    setting: Setting
    compression: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Compression(_OfFamily):
    """Table 3: what L1 makes of a network, beside its best baseline, which has a sparsity and an accuracy.

    ``ours`` is the sparsest gated setting that is at least as accurate as the baseline, ``near`` the sparsest gated one
    that gives up at most `NEAR` of accuracy, ``plain`` the sparsest baseline that does. Each is None if there is none.
    """

    baseline: Setting
    ours: Sparsest | None
    near: Sparsest | None
    plain: Sparsest | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Found(_OfFamily):
    """What one line of a search found.

    ``ranking`` has its complete settings, the best first; with two objectives only those that no other beats in both.
    ``settings`` counts the complete ones, ``equal`` those beside the best that reached the same, and ``within`` those
    beside it that lie in the 95 % interval of its first objective; None without one. ``since`` counts those
    that were suggested after it. ``refit`` is the best, trained again on all images.
    """

    regularizer: str
    mode: str
    objectives: tuple[str, ...]
    ranking: tuple[Setting, ...]
    settings: int
    equal: int
    within: int | None
    since: int
    refit: Setting | None

    @property
    def best(self) -> Setting:
        """The best by the first objective."""
        return self.ranking[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """All that a report says about the trials of a store. ``searched`` says that a search filled it."""

    settings: tuple[Setting, ...]
    comparisons: tuple[Compared, ...]
    tolerance: tuple[Tolerance, ...]
    compression: tuple[Compression, ...]
    found: tuple[Found, ...]
    searched: bool
    failures: tuple[tuple[str, str], ...]
    """Trial id and error of every failed trial."""
