"""The paper's tables from rows: hand-made rows whose answers are known."""

import pytest

from tune.aggregate import best_setting, compression_rate, summarize
from tune.paper import TABLE3
from tune.stats import t_half_width


@pytest.mark.parametrize("key", TABLE3)
def test_table_3_rates_follow_from_the_papers_sparsities(key):
    paper = TABLE3[key]
    assert round(compression_rate(paper.baseline_sparsity, paper.ours_sparsity), 1) == paper.compression


def test_an_empty_network_has_no_rate():
    assert compression_rate(0.5, 1.0) is None


def test_means_count_collapsed_trials_and_leave_out_failed_ones(table, row):
    rows = [
        row(0.9, mode="baseline", lam=0.1, seed=0),
        row(0.1, status="collapsed", mode="baseline", lam=0.1, seed=1),
        row(status="failed", mode="baseline", lam=0.1, seed=2),
        row(None, status="diverged", mode="baseline", lam=0.1, seed=3),
    ]
    summary = summarize(table(rows))
    (setting,) = summary.settings
    assert (setting.n, setting.collapsed, setting.failed, setting.diverged) == (2, 1, 1, 1)
    assert setting.accuracy_mean == pytest.approx(0.5)
    assert setting.accuracy_ci95 == pytest.approx(t_half_width([0.9, 0.1]))
    assert not setting.learned
    assert [trial_id for trial_id, _ in summary.failures] == [rows[2]["trial_id"]]


def _grid(row, mode, accuracies, **fields):
    """Three seeds around each accuracy; below 0.2 is collapsed."""
    return [
        row(
            accuracy + 0.001 * (seed - 1),
            status="collapsed" if accuracy < 0.2 else "finished",
            mode=mode,
            lam=lam,
            seed=seed,
            **fields,
        )
        for lam, accuracy in accuracies.items()
        for seed in (0, 1, 2)
    ]


def test_best_tuned_settings_are_compared(table, row):
    rows = _grid(row, "baseline", {0.1: 0.80, 0.2: 0.82, 0.4: 0.1}) + _grid(
        row, "ours", {0.1: 0.81, 0.2: 0.83, 0.4: 0.86}
    )
    (compared,) = summarize(table(rows)).comparisons
    assert (compared.baseline.lam, compared.ours.lam) == (0.2, 0.4)
    assert compared.relative_improvement == pytest.approx(0.04 / 0.82)
    assert compared.significant
    assert (compared.tolerance_lam, compared.collapse_lam) == (0.2, 0.4)
    assert compared.p_value_holm == compared.p_value  # the only comparison


def test_tolerance_is_literal_also_where_the_line_is_broken(table, row):
    rows = _grid(row, "baseline", {0.1: 0.8, 0.2: 0.1, 0.3: 0.8, 0.4: 0.1})
    (level,) = summarize(table(rows)).tolerance
    assert (level.tolerance_lam, level.collapse_lam) == (0.3, 0.2)


def test_levels_stand_in_the_order_of_their_methods_whatever_lam_was_tried(table, row):
    tried = ((20, 1e-3), (1, 2e-3), (100, 3e-3), (5, 4e-3), ("auto", 5e-3))
    levels = summarize(table([row(0.8, mode="ours", lam=lam, gamma=gamma) for gamma, lam in tried])).tolerance
    assert [level.gamma for level in levels] == ["auto", "1", "5", "20", "100"]


def test_a_level_has_no_failed_trial_and_a_failed_trial_is_no_collapse(table, row):
    rows = _grid(row, "baseline", {0.1: 0.8, 0.2: 0.8, 0.4: 0.1})
    rows += [row(0.8, mode="baseline", lam=0.3)]
    rows += [row(status="failed", mode="baseline", lam=0.3, seed=seed) for seed in (1, 2)]
    summary = summarize(table(rows))
    assert [s.learned for s in summary.settings] == [True, True, False, False]
    (level,) = summary.tolerance
    assert (level.tolerance_lam, level.collapse_lam) == (0.2, 0.4)


@pytest.fixture
def searched(row):
    """What a search stores: settings with hold-out (at 0.2 the best of both modes), and their refits without."""
    held_out = _grid(row, "baseline", {0.1: 0.80, 0.2: 0.82}, holdout=0.1)
    held_out += _grid(row, "ours", {0.1: 0.83, 0.2: 0.84}, holdout=0.1)
    refits = _grid(row, "baseline", {0.2: 0.83}) + _grid(row, "ours", {0.2: 0.85})
    return [each | {"val_accuracy": each["test_accuracy"]} for each in held_out], refits


def test_a_refit_is_chosen_on_no_split_and_counts_for_holm_instead_of_what_chose_it(table, searched):
    held_out, refits = searched
    after, before = summarize(table(held_out + refits)).comparisons
    assert (after.selected_on, after.refitted, before.selected_on, before.refitted) == (None, False, "validation", True)
    assert after.p_value_holm == after.p_value
    assert before.p_value is not None
    assert (before.p_value_holm, before.significant_holm) == (None, None)


def test_refits_of_other_settings_do_not_stand_for_what_chose(table, row, searched):
    other = _grid(row, "baseline", {0.1: 0.83}) + _grid(row, "ours", {0.2: 0.85})  # the best by another objective
    comparisons = summarize(table(searched[0] + other)).comparisons
    assert [compared.refitted for compared in comparisons] == [False, False]
    smaller = min(comparisons, key=lambda c: c.p_value)
    assert smaller.p_value_holm == pytest.approx(2 * smaller.p_value)


def test_without_a_refit_that_is_tested_what_chose_counts_for_holm(table, searched):
    held_out, refits = searched
    for stored in (held_out, held_out + [each for each in refits if each["seed"] == 0]):
        *_, before = summarize(table(stored)).comparisons
        assert not before.refitted
        assert before.p_value_holm == before.p_value


def test_a_sweep_without_hold_out_is_no_refit(table, row, searched):
    rows = _grid(row, "baseline", {0.1: 0.80, 0.2: 0.82}) + _grid(row, "ours", {0.2: 0.83})
    swept, before = summarize(table(searched[0] + rows)).comparisons
    assert (swept.selected_on, swept.refitted, before.refitted) == ("test", False, False)
    smaller = min(swept, before, key=lambda c: c.p_value)
    assert smaller.p_value_holm == pytest.approx(2 * smaller.p_value)


def test_holm_covers_all_comparisons_of_the_report(table, row):
    rows = _grid(row, "baseline", {0.1: 0.80}) + _grid(row, "ours", {0.1: 0.802}) + _grid(row, "ours_orig", {0.1: 0.85})
    first, second = summarize(table(rows)).comparisons
    smaller = min(first, second, key=lambda c: c.p_value)
    assert smaller.p_value_holm == pytest.approx(2 * smaller.p_value)


def test_compression_takes_the_sparsest_that_is_good_enough(table, row):
    def at(mode, lam, accuracy, sparsity):
        return row(accuracy, sparsity=sparsity, mode=mode, lam=lam, regularizer="l1")

    rows = [
        at("baseline", 0.1, 0.80, 0.219),
        at("baseline", 0.2, 0.79, 0.6),
        at("ours", 0.1, 0.81, 0.5),
        at("ours", 0.2, 0.80, 0.814),
        at("ours_orig", 0.3, 0.795, 0.9),
        at("ours", 0.4, 0.70, 0.95),
    ]
    (found,) = summarize(table(rows)).compression
    assert (found.baseline.lam, found.ours.setting.mode, found.ours.setting.lam) == (0.1, "ours", 0.2)
    assert found.ours.compression == pytest.approx(4.2, abs=0.05)
    assert (found.near.setting.mode, found.near.setting.lam) == ("ours_orig", 0.3)
    assert found.near.compression == pytest.approx(0.781 / 0.1)


def test_the_survivors_of_a_setting_whose_others_diverged_at_once_do_not_win(table, row):
    rows = [row(0.97, mode="baseline", lam=1e-3, seed=seed) for seed in range(3)]
    rows += [row(0.96, mode="ours", lam=1e-3, seed=seed) for seed in range(3)]
    lucky = row(0.99, mode="baseline", lam=1e-2), row(None, status="diverged", mode="baseline", lam=1e-2, seed=1)
    (compared,) = summarize(table([*rows, *lucky])).comparisons
    assert compared.baseline.lam == 1e-3
    (compared,) = summarize(table([*rows[3:], *lucky])).comparisons
    assert compared.baseline.lam == 1e-2, "there is no other"


def test_equal_seeds_in_another_order_are_a_tie(table, row):
    values = [430 / 450, 438 / 450, 437 / 450]
    orders = {1e-3: values, 2e-3: [values[2], values[0], values[1]]}
    rows = [
        row(value, mode=mode, lam=lam, seed=seed, regularizer="l1", sparsity=300 * lam)
        for mode, lams in (("baseline", (1e-3, 2e-3)), ("ours", (2e-3,)))
        for lam in lams
        for seed, value in enumerate(orders[lam])
    ]
    summary = summarize(table(rows))
    assert summary.comparisons[0].baseline.lam == 1e-3, "the weakest of equals"
    assert summary.compression[0].ours.compression == pytest.approx(0.7 / 0.4)


def test_different_recipes_never_compete(table, row):
    rows = [row(0.8, mode="baseline", lam=0.1, epochs=10), row(0.9, mode="ours", lam=0.1, epochs=20)]
    assert summarize(table(rows)).comparisons == ()


def test_regularizers_stand_in_the_papers_order(table, row):
    rows = [row(0.8, mode="baseline", regularizer=name, lam=0.1) for name in ("l1", "l2")]
    summary = summarize(table([*rows, row(0.8, mode="none", regularizer="none", lam=0.0)]))
    assert [setting.regularizer for setting in summary.settings] == ["none", "l2", "l1"]
    assert [level.regularizer for level in summary.tolerance] == ["l2", "l1"]


def test_order_of_rows_does_not_matter(table, row):
    rows = _grid(row, "baseline", {0.1: 0.80, 0.2: 0.82}) + _grid(row, "ours", {0.1: 0.81})
    assert summarize(table(rows)) == summarize(table(rows[::-1]))


def test_nothing_gives_nothing(table):
    summary = summarize(table([]))
    assert summary.settings == summary.comparisons == summary.tolerance == summary.compression == ()


@pytest.mark.parametrize("network", TABLE3)
def test_the_papers_seven_compression_rates_from_records_with_its_sparsities(table, row, network):
    paper = TABLE3[network]
    fields = {"dataset": network[0], "model": network[1], "regularizer": "l1"}
    rows = [
        row(accuracy / 100 + offset, sparsity=sparsity, mode=mode, lam=lam, seed=seed, **fields)
        for mode, lam, accuracy, sparsity in (
            ("baseline", 1e-5, paper.baseline_accuracy, paper.baseline_sparsity),
            ("ours", 1e-4, paper.ours_accuracy, paper.ours_sparsity),
        )
        for seed, offset in enumerate((-1e-4, 0.0, 1e-4))
    ]
    (found,) = summarize(table(rows)).compression
    assert round(found.ours.compression, 1) == paper.compression
    assert paper.compression in (4.2, 1.9, 2.4, 2.6, 3.1, 2.7, 9.9)


def test_of_equal_means_the_weakest_lam_is_the_best_however_they_were_summed(table, row):
    weak, strong = ((435, 435, 440), (435, 437, 438))  # of 450, in an order in which sums of floats differ
    rows = [
        row(correct / 450, mode="baseline", lam=lam, seed=seed)
        for lam, counts in ((1e-4, weak), (1e-3, strong))
        for seed, correct in enumerate(counts)
    ]
    best = best_setting(summarize(table(rows)).settings)
    assert best is not None and best.lam == 1e-4
