"""The verdict in words, computed from a summary: what collapses, what survives, what wins, how sure, how small."""

import itertools
from collections.abc import Iterator, Sequence

from tune.aggregate import GATED, best_setting
from tune.found import train_command
from tune.summary import Compared, Compression, Found, Setting, Sparsest, Summary, Tolerance
from tune.tables import accuracy_of, lam_of, method_of, objective_text, reached_text, telling_levels
from tune.words import counted, float_text, number, percent, probability, signed_percent

__all__ = ["caveats", "commands", "headline", "sentences"]

_NOTICEABLE = 1.05  # times smaller


def headline(summary: Summary) -> str:
    """The whole verdict in a few short sentences."""
    if not summary.settings:
        return "No trial has ended yet."
    if not any(s.n for s in summary.settings):
        failed, diverged = (sum(getattr(s, status) for s in summary.settings) for status in ("failed", "diverged"))
        counts = {"failed": failed, "diverged in their first epoch": diverged}
        reasons = " and ".join(f"{count} {end}" for end, count in counts.items() if count)
        return f"Nothing was measured: of the trials, {reasons}."
    said = []
    plain = _plain_levels(summary)
    stopped = [level for level in plain if level.collapse_lam is not None]
    collapsed = [level for level in stopped if not _is_lost_anyway(level, summary)]
    if stopped and not collapsed:
        of = (
            "The network does"
            if len(stopped) == len(plain)
            else f"In {len(stopped)} of {len(plain)} λ sweeps networks do"
        )
        said.append(f"{of} not learn without regularization either.")
    elif collapsed:
        of = "" if len(plain) == 1 else f" in {len(collapsed)} of {len(plain)} λ sweeps"
        reach = max((_reach(level, summary.tolerance) for level in collapsed), default=0.0)
        times = f"{reach:.2g}" if reach < 10 else f"{reach:.0f}"
        beyond = f"; gated, it still learns at up to {times} times the λ" if reach > 1 else ""
        fails = "stops learning" if any(_stops(level, summary) for level in collapsed) else "fails in some seeds"
        said.append(f"Plain regularization {fails}{of}{beyond}.")
    elif plain:
        tried = [s for s in summary.settings if s.mode == "baseline"]
        said.append(f"Plain regularization learns at every λ tried{_but_failed(tried)}.")
    compared = [c for c in summary.comparisons if not c.refitted]
    sure = [c for c in compared if c.significant_holm and (c.relative_improvement or 0) > 0]
    if sure:
        best = max(sure, key=lambda c: c.relative_improvement or 0.0)
        said.append(
            f"{len(sure)} of {counted(len(compared), 'comparison')} with the best baseline "
            f"{'is a significant gain' if len(sure) == 1 else 'are significant gains'}, also after "
            f"Holm's correction; the largest is that of {method_of(best.ours)} with {best.regularizer.upper()} on "
            f"{best.network}: {signed_percent(best.relative_improvement)} relative."
        )
    elif tested := sum(c.significant is not None for c in compared):
        alone = sum(c.significant is True and (c.relative_improvement or 0) > 0 for c in compared)
        after = " after Holm's correction" if alone else ""
        of = f"{tested} tested" + (f", {alone} significant alone" if alone else "")
        said.append(f"No gain in accuracy over the best-tuned baseline is significant{after} ({of}).")
    elif compared:
        said.append("Whether a gain in accuracy is significant cannot be said: too few runs, or no spread.")
    most = max(summary.compression, key=lambda c: _times(c.ours), default=None)
    near = max(summary.compression, key=lambda c: _times(c.near), default=None)
    if most is not None and _times(most.ours) >= _NOTICEABLE:
        smaller = f"networks are up to {_times(most.ours):.1f} times smaller"
        said.append(f"At the baseline's {_split(most)}accuracy, {smaller}.")
    elif near is not None and _times(near.near) >= _NOTICEABLE:
        smaller = f"networks are up to {_times(near.near):.1f} times smaller"
        said.append(f"Within one point of the baseline's {_split(near)}accuracy, {smaller}.")
    if said:
        return " ".join(said)
    missing = "baseline" if any(s.mode != "none" for s in summary.settings) else "regularized trial"
    return f"There is no {missing} to compare with{_best_of(summary.settings)}."


def _best_of(settings: Sequence[Setting]) -> str:
    held_out = [setting for setting in settings if setting.val_accuracy_mean is not None]
    best = best_setting(held_out or settings)  # not of both splits: a setting's refit has another one
    if best is None:
        return ""
    by = "without L1/L2"
    if best.mode != "none":
        by = f"with {method_of(best)}, {best.regularizer.upper()} at λ = {lam_of(best)}"
    split = "validation " if best.val_accuracy_mean is not None else ""
    reached = reached_text(best, "val_accuracy" if split else "test_accuracy")
    return f"; the best {split}accuracy, {reached}, is that of {best.network} {by}"


def _plain_levels(summary: Summary) -> list[Tolerance]:
    """The levels of plain regularization; of a search those at one λ, as of its refits, only for want of others."""
    telling = [level for level in telling_levels(summary) if level.mode == "baseline"]
    return telling or [level for level in summary.tolerance if level.mode == "baseline"]


def _reach(level: Tolerance, levels: Sequence[Tolerance]) -> float:
    """How many times the plain tolerance level the gated modes bear.

    0.0 where they do not learn at the λ at which plain regularization stops, or where there is no such level.
    """
    reach = max((other.tolerance_lam or 0.0 for other in _gated(level, levels)), default=0.0)
    if not level.tolerance_lam or level.collapse_lam is None or reach < level.collapse_lam:
        return 0.0
    return reach / level.tolerance_lam


def _gated(level: Tolerance, levels: Sequence[Tolerance]) -> Iterator[Tolerance]:
    """The levels of the gated modes beside that of plain regularization."""
    for other in levels:
        if (other.recipe, other.regularizer) == (level.recipe, level.regularizer) and other.mode != "baseline":
            yield other


def sentences(summary: Summary) -> Iterator[str]:
    """One sentence a finding, in the order in which a reader asks."""
    for line in summary.found:
        yield _best_found(line)
    for level in _plain_levels(summary):
        yield _collapse(level, summary)
    for compared in summary.comparisons:
        yield _comparison(compared)
    for found in summary.compression:
        if any(s.recipe == found.recipe and s.regularizer == "l1" and s.mode in GATED for s in summary.settings):
            yield _compression(found)


def _best_found(found: Found) -> str:
    best, objective = found.best, found.objectives[0]
    where = f"{found.network}, {found.regularizer.upper()}"
    if len(found.objectives) > 1:
        words = " and ".join(objective_text(name) for name in found.objectives)
        ends = [found.ranking[0], found.ranking[-1]][: len(found.ranking)]
        reached = (" and ".join(reached_text(s, name) for name in found.objectives) for s in ends)
        told = (f"{values} at λ = {lam_of(s)} ({method_of(s)})" for values, s in zip(reached, ends, strict=True))
        front = f"{len(found.ranking)} of {counted(found.settings, 'setting')} of {found.mode}"
        first = f"{where}: the Pareto front of {words} has {front}, {' to '.join(told)}"
    else:
        first = (
            f"{where}: the best of {counted(found.settings, 'setting')} searched, {method_of(best)} at "
            f"λ = {lam_of(best)}, has a mean {objective_text(objective)} of {reached_text(best, objective)} over "
            f"{counted(best.n, 'seed')}{_how_sure(found)}"
        )
    if found.refit is None:
        return f"{first}."
    return f"{first}; {method_of(best)} trained again on all images has {accuracy_of(found.refit)} on the test images."


def _how_sure(found: Found) -> str:
    others = found.settings - 1
    if not others:
        return ""
    near = []
    if found.equal:
        near.append(f"{'all' if found.equal == others else found.equal} reached the same")
    if found.within is not None and found.equal < others:
        count = "all" if found.within == others else found.within or "none"
        near.append(f"{count} {'lies' if count == 1 else 'lie'} within its interval")
    said = f"; of the other {others}, {' and '.join(near)}" if near else ""
    if others == 1 and near:
        within = "lies within its interval" if found.within else "lies outside its interval"
        said = f"; the other one {'reached the same' if found.equal else within}"
    if found.since:
        after = "the one" if found.since == 1 else f"none of the {found.since}"
        return f"{said}; {after} suggested after it was {'no ' * (found.since == 1)}better"
    return f"{said}; it was suggested last of these, so that more trials may well find a better one"


def commands(summary: Summary) -> Iterator[str]:
    """Lines for a shell: a comment on each setting that one would use, and the command that trains it.

    Of a search these are the best of each line, of a sweep the most accurate of each regularizer and the smallest.
    """
    told = set()
    for best, why in _best_found_again(summary) if summary.found else _best_swept(summary):
        command = train_command(best)
        if command not in told:
            told.add(command)
            seeds = ", ".join(map(str, best.seeds[1:]))
            others = f"; other seeds: {seeds}" if seeds else ""
            yield f"# {best.network}, {best.regularizer.upper()}{why}, {method_of(best)}{others}"
            yield command


def _best_found_again(summary: Summary) -> Iterator[tuple[Setting, str]]:
    for found in summary.found:
        yield found.refit or found.best, ""


def _best_swept(summary: Summary) -> Iterator[tuple[Setting, str]]:
    for (_, regularizer), compared in itertools.groupby(summary.comparisons, lambda c: (c.recipe, c.regularizer)):
        each = list(compared)
        best = best_setting([each[0].baseline, *(c.ours for c in each)])
        if best is not None and best.learned:
            yield best, ", the most accurate"
        for found in summary.compression if regularizer == "l1" else ():
            if found.recipe == each[0].recipe:
                yield from _smallest(found)


def _smallest(found: Compression) -> Iterator[tuple[Setting, str]]:
    if found.ours is not None and _times(found.ours) >= _NOTICEABLE:
        yield found.ours.setting, ", the smallest at the baseline's accuracy"
    if found.near is not None and _times(found.near) >= _NOTICEABLE:
        yield found.near.setting, ", the smallest within a point of the baseline's"


def _collapse(level: Tolerance, summary: Summary) -> str:
    where = f"{level.network}, {level.regularizer.upper()}"
    if level.collapse_lam is None:
        tried = _tried(level, summary)
        top = float_text(max(s.lam for s in tried if s.n))
        return f"{where}: plain regularization learned at every λ tried{_but_failed(tried)} (up to {top})."
    if level.tolerance_lam is None:
        sentence = (
            f"{where}: plain regularization learned in all seeds at no λ tried, "
            f"and collapses at {float_text(level.collapse_lam)}"
        )
    elif level.tolerance_lam > level.collapse_lam:
        sentence = (
            f"{where}: plain regularization fails in some seeds from λ = {float_text(level.collapse_lam)} on, "
            f"and last learns in all at {float_text(level.tolerance_lam)}"
        )
    else:
        sentence = (
            f"{where}: plain regularization learns up to λ = {float_text(level.tolerance_lam)} "
            f"and collapses at {float_text(level.collapse_lam)}"
        )
    if _is_lost_anyway(level, summary):
        sentence += ", as the network does without any"
    return f"{sentence}; {_survival(level, level.collapse_lam, summary)}."


def _tried(level: Tolerance, summary: Summary) -> list[Setting]:
    own = (level.recipe, level.regularizer, level.mode)
    return [s for s in summary.settings if (s.recipe, s.regularizer, s.mode) == own]


def _stops(level: Tolerance, summary: Summary) -> bool:
    """Whether a seed does not learn beyond the last λ at which all do."""
    last = -1.0 if level.tolerance_lam is None else level.tolerance_lam
    return any(s.stopped and s.lam > last for s in _tried(level, summary))


def _is_lost_anyway(level: Tolerance, summary: Summary) -> bool:
    """Whether the network of a level learned in no seed without regularization, either."""
    plain = (s for s in summary.settings if s.mode == "none" and s.recipe == level.recipe)
    return any(s.stopped and s.n + s.unmeasured == s.collapsed + s.diverged for s in plain)


def _survival(level: Tolerance, lam: float, summary: Summary) -> str:
    """What the gated modes did where plain regularization collapses; each with the μ or γ that reaches furthest."""
    survivors: dict[str, tuple[float, str]] = {}
    for other in _gated(level, summary.tolerance):
        reach = other.tolerance_lam
        if reach is None or reach < lam:
            continue
        if other.mode not in survivors or reach > survivors[other.mode][0]:
            survivors[other.mode] = reach, method_of(other)
    if survivors:
        return ", ".join(f"{method} still learns at {float_text(reach)}" for reach, method in survivors.values())
    tried = any(
        s.mode not in ("none", "baseline") and s.lam >= lam and (s.n or s.diverged)
        for s in summary.settings
        if (s.recipe, s.regularizer) == (level.recipe, level.regularizer)
    )
    return "no gated mode learned there in all seeds" if tried else "no gated mode was tried there"


def _but_failed(settings: Sequence[Setting]) -> str:
    """What a sentence about these settings must add if trials failed, which show nothing."""
    return ", in the trials that did not fail" if any(s.failed for s in settings) else ""


def _comparison(c: Compared) -> str:
    size = "" if c.relative_improvement is None else f" ({signed_percent(c.relative_improvement)} relative)"
    if c.significant is None:
        sure = "too few runs or no spread: no test"
    else:
        word = "significant" if c.significant else "not significant"
        if c.significant and c.significant_holm is False:
            word = "significant alone, not after Holm's correction"
        p = probability(c.p_value)
        holm = "its refit stands for it in Holm's correction" if c.refitted else f"Holm {probability(c.p_value_holm)}"
        sure = f"{word}, p {p if p.startswith('<') else f'= {p}'}, {holm}"
    return (
        f"{c.network}, {c.regularizer.upper()}: best {method_of(c.ours)} "
        f"{accuracy_of(c.ours)} at λ = {lam_of(c.ours)} against best baseline "
        f"{accuracy_of(c.baseline)} at {lam_of(c.baseline)}{size}; {sure}."
    )


def _split(c: Compression) -> str:
    """What the accuracies that settings were chosen by are called; those that are told are of the test images."""
    return "validation " if c.recipe["holdout"] else ""


def _compression(c: Compression) -> str:
    if c.ours is None or _times(c.ours) < _NOTICEABLE:
        first = f"{c.network}, L1: no gated setting has both the best baseline's {_split(c)}accuracy and zeros to spare"
    else:
        ours = c.ours.setting
        first = (
            f"{c.network}, L1: {method_of(ours)} at λ = {lam_of(ours)} keeps the best baseline's "
            f"{_split(c)}accuracy ({percent(ours.accuracy_mean)} against {percent(c.baseline.accuracy_mean)}"
            f"{' on the test images' if _split(c) else ''}) with {_times(c.ours):.1f} "
            f"times fewer non-zero parameters (sparsity {number(ours.sparsity_mean)} against "
            f"{number(c.baseline.sparsity_mean)})"
        )
    if c.near is None or _times(c.near) < _NOTICEABLE or _times(c.near) <= _times(c.ours):
        return first + "."  # within a point there is nothing sparser
    near = c.near.setting
    if _split(c):
        price = f"at most one point of validation accuracy ({percent(near.accuracy_mean)} on the test images)"
    else:
        assert c.baseline.accuracy_mean is not None and near.accuracy_mean is not None
        price = f"{100 * (c.baseline.accuracy_mean - near.accuracy_mean):.2f} points of accuracy"
    return (
        f"{first}; for {price}, {method_of(near)} at λ = {lam_of(near)} "
        f"is {_times(c.near):.1f} times smaller (sparsity {number(near.sparsity_mean)}){_plain(c)}."
    )


def _plain(c: Compression) -> str:
    """What plain regularization reaches for the same price."""
    if c.plain is None or _times(c.plain) < _NOTICEABLE:
        return ", and plain regularization is no smaller within a point"
    where = lam_of(c.plain.setting)
    return f", and plain regularization at λ = {where} is {_times(c.plain):.1f} times smaller within a point"


def _times(found: Sparsest | None) -> float:
    """How many times smaller than the best baseline; 1.0 if there is no such setting, or it is an empty network."""
    return 1.0 if found is None else found.compression or 1.0


def caveats(summary: Summary) -> Iterator[str]:
    """What a careful reader should know before quoting the numbers."""
    searched_on = {found.objectives[0] for found in summary.found if found.settings > 1}
    if "val_accuracy" in searched_on:
        yield "The best of a search was probably lucky on the validation images that chose it: quote its test accuracy."
    if "test_accuracy" in searched_on or any(c.selected_on == "test" for c in summary.comparisons):
        yield "The best λ was chosen on the test split, as in the paper; set holdout to choose it honestly."
    elif "val_accuracy" not in searched_on and any(c.selected_on == "validation" for c in summary.comparisons):
        yield "The best λ was chosen on the held-out images; accuracies are those on the test images."
    idle = sum(s.mode in GATED and s.lam > 0 and s.imposed_fraction_mean == 0 for s in summary.settings)
    if idle:
        yield f"In {counted(idle, 'gated setting')} λ was never imposed: that is training without L1/L2."
    if any(c.significant is False and _leaves_out_0(c) for c in summary.comparisons):
        yield "Bootstrap intervals (95 % of diff.) are too narrow for few runs: significance is that of p."
    few = sorted({s.n for s in summary.settings if 0 < s.n < 3})
    if few:
        yield (
            f"Some settings have only {' or '.join(map(str, few))} run{'s' * (few != [1])}: "
            "one gives no interval, and two a wide one."
        )
    if len({s.n for s in summary.settings}) > 1:
        yield "Settings differ in their number of runs."
    edges = (edge for compared in summary.comparisons for edge in _edges(compared, summary.settings))
    yield from dict.fromkeys(edges)  # two modes are compared with the same baseline
    early = sum(s.unmeasured for s in summary.settings)
    late = sum(s.diverged for s in summary.settings) - early
    if late:
        counts = "counts with its" if late == 1 else "count with their"
        yield f"{counted(late, 'trial')} diverged and {counts} last finite epoch."
    if early:
        ended = "its first epoch and is" if early == 1 else "their first epoch and are"
        yield (
            f"{counted(early, 'trial')} diverged in {ended} in no mean, nor is a setting with such a trial the best if "
            "there is another."
        )
    if summary.failures:
        are = "is" if len(summary.failures) == 1 else "are"
        yield f"{counted(len(summary.failures), 'trial')} failed and {are} in no mean."


def _leaves_out_0(c: Compared) -> bool:
    return c.difference_low is not None and c.difference_high is not None and c.difference_low * c.difference_high > 0


def _edges(compared: Compared, settings: tuple[Setting, ...]) -> Iterator[str]:
    modes = {"baseline": compared.baseline.lam, compared.mode: compared.ours.lam}
    tried_by = {
        mode: {
            s.lam
            for s in settings
            if (s.recipe, s.regularizer, s.mode) == (compared.recipe, compared.regularizer, mode)
            and (s.n or s.diverged)
        }
        for mode in modes
    }
    for mode, best in modes.items():
        tried = tried_by[mode]
        if len(tried) == 1 < max(map(len, tried_by.values())):  # as bisection does where the largest λ is borne
            yield (
                f"{compared.network}, {compared.regularizer.upper()}: {mode} was tried at one λ only "
                f"({float_text(best)}), which is compared with the best of several."
            )
        if len(tried) > 1 and best > 0 and best in (min(tried), max(tried)):  # no λ lies below 0
            side, beyond = ("smallest", "smaller") if best == min(tried) else ("largest", "larger")
            yield (
                f"{compared.network}, {compared.regularizer.upper()}: the best λ of {mode} ({float_text(best)}) is the "
                f"{side} tried; the true best may be {beyond}."
            )
