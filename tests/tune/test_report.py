"""Reports: the same numbers in every format, in words that follow from them."""

import csv
import io
import json
import re

import pytest
import yaml

from gcsr import TrialConfig
from tune.aggregate import summarize
from tune.formats import FORMATS
from tune.report import AGAIN, render
from tune.summary import Searched
from tune.tables import text_tables
from tune.verdict import caveats, commands, headline

TEXT_FORMATS = [form for form in FORMATS if form != "html"]  # the page is looked at in tests/tune/test_html.py


@pytest.fixture
def summary(table, row):
    rows = []
    for seed in range(3):
        near = 0.001 * seed
        rows += [
            row(0.80 + near, mode="baseline", lam=1e-3, seed=seed),
            row(0.1, status="collapsed", mode="baseline", lam=1e-2, seed=seed),
            row(0.81 + near, mode="ours", lam=1e-3, seed=seed),
            row(0.85 + near, mode="ours", lam=1e-2, seed=seed),
            row(0.70, sparsity=0.5, mode="baseline", lam=1e-4, seed=seed, regularizer="l1"),
            row(0.71, sparsity=0.9, mode="ours", lam=1e-3, seed=seed, regularizer="l1"),
        ]
    rows.append(row(status="failed", mode="ours_orig", lam=1e-3))
    return summarize(table(rows))


@pytest.mark.parametrize("form", TEXT_FORMATS)
def test_every_format_shows_the_means(summary, form):
    text = render(summary, form, title="x", progress="18 of 18")
    assert ("0.851" if form in ("json", "csv") else "85.10") in text


def test_the_networks_that_one_would_use_come_with_their_commands(summary, table, row):
    lines = list(commands(summary))
    assert lines[::2] == [
        "# mlp6 on digits, L2, the most accurate, ours γ=5; other seeds: 1, 2",
        "# mlp6 on digits, L1, the most accurate, ours γ=5; other seeds: 1, 2",  # which is the smallest, too
    ]
    wanted = [max(s.accuracy_mean or 0 for s in summary.settings if s.regularizer == r) for r in ("l2", "l1")]
    for line, accuracy in zip(lines[1::2], wanted, strict=True):
        words = line.split()
        assert words[:2] == ["gcsr", "train"]
        options = zip(words[2::2], words[3::2], strict=True)
        config = TrialConfig(**{name.removeprefix("--"): yaml.safe_load(value) for name, value in options})
        (setting,) = (s for s in summary.settings if config.trial_id in s.trial_ids)
        assert setting.accuracy_mean == accuracy

    rows = []
    for seed in range(2):
        more = 0.001 * seed
        for lam, accuracy, zeros in ((1e-4, 0.9, 0.1), (1e-3, 0.902, 0.5), (2e-3, 0.901, 0.6), (3e-3, 0.895, 0.7)):
            mode = "baseline" if lam == 1e-4 else "ours"
            rows.append(row(accuracy + more, sparsity=zeros, mode=mode, lam=lam, seed=seed, regularizer="l1"))
    found = list(commands(summarize(table(rows))))
    told = ["the most accurate", "the smallest at the baseline's accuracy", "the smallest within a point of the base"]
    for line, lam, why in zip(found[1::2], ("0.001", "0.002", "0.003"), told, strict=True):
        assert f"--lam {lam} " in line
        assert why in found[found.index(line) - 1]
    never = [row(0.1, status="collapsed", mode=mode, lam=1.0) for mode in ("baseline", "ours")]
    assert not list(commands(summarize(table(never)))), "nobody wants a network that has not learned"


def test_the_verdict_follows_from_the_numbers(summary):
    text = render(summary, "text", title="x", progress="18 of 18", width=400)
    assert "learns up to λ = 0.001 and collapses at 0.01; ours γ=5 still learns at 0.01" in text
    assert "+6.24 % relative" in text  # 0.851 / 0.801
    assert "5.0 times fewer" in text  # (1 − 0.5) / (1 − 0.9)
    assert "chosen on the test split" in text
    assert "1 trial failed and is in no mean" in text


def test_of_many_methods_of_a_mode_the_verdict_names_the_one_that_reaches_furthest(table, row):
    rows = [row(0.8, mode="baseline", lam=1e-3), row(0.1, status="collapsed", mode="baseline", lam=2e-3)]
    rows += [row(0.8, mode="ours", lam=2e-3), row(0.8, mode="ours", lam=4e-3, gamma=20)]
    rows += [row(0.8, mode="ours_orig", lam=3e-3, mu=mu) for mu in (0.5, 0.6, 0.7)]
    text = render(summarize(table(rows)), "text", title="x", progress="p", width=400)
    assert "collapses at 0.002; ours γ=20 still learns at 0.004, ours_orig μ=0.5 still learns at 0.003." in text


def test_what_is_sparser_and_better_costs_no_accuracy(summary):
    text = render(summary, "text", title="x", progress="p", width=400)
    assert "points of accuracy" not in text


def test_one_run_each_is_too_few_to_test(table, row):
    rows = [row(0.8, mode="baseline", lam=1e-3), row(0.9, mode="ours", lam=1e-3)]
    text = render(summarize(table(rows)), "text", title="x", progress="p", width=400)
    assert "cannot be said: too few runs, or no spread" in text
    assert "(+12.50 % relative); too few runs or no spread: no test." in text
    assert "No gain" not in text


def test_without_regularization_there_is_nothing_to_compare(table, row):
    none = [row(0.8, mode="none", lam=0, regularizer="none", seed=seed) for seed in range(3)]
    ours = [row(0.8, mode="ours", lam=1e-3, seed=seed) for seed in range(3)]
    searched = [row(0.8, mode="ours", lam=1e-3, seed=seed, holdout=0.1) | {"val_accuracy": 0.7} for seed in range(3)]
    best = "the best accuracy, 80.00 ± 0.00 %, is that of mlp6 on digits"
    for rows, told in (
        (none, f"There is no regularized trial to compare with; {best} without L1/L2."),
        (ours, f"There is no baseline to compare with; {best} with ours γ=5, L2 at λ = 0.001."),
        (none + ours, "There is no baseline to compare with;"),
        (searched + ours, "; the best validation accuracy, 70.00 ± 0.00 %, is that of mlp6 on digits"),
    ):
        text = render(summarize(table(rows)), "text", title="x", progress="p", width=400)
        assert told in text


def test_that_nothing_was_measured_is_not_that_nothing_ended(table, row):
    lost = {"test_accuracy": None, "sparsity": None}
    failed = [row(0.0, status="failed", mode="ours", seed=seed) | lost for seed in range(2)]
    diverged = [row(0.0, status="diverged", mode="baseline", seed=seed) | lost for seed in range(3)]
    for rows, told in ((failed, "2 failed."), (failed + diverged, "2 failed and 3 diverged in their first epoch.")):
        assert headline(summarize(table(rows))) == f"Nothing was measured: of the trials, {told}"


def test_gated_modes_survive_only_where_plain_regularization_stops(table, row):
    rows = [row(0.9, mode="baseline", lam=1e-4), row(0.1, status="collapsed", mode="baseline", lam=1e-2)]
    rows += [row(0.9, mode="ours", lam=5e-3), row(0.9, mode="ours_orig", lam=5e-3)]
    assert "times the λ" not in headline(summarize(table(rows)))
    assert "up to 100 times the λ" in headline(summarize(table([*rows, row(0.9, mode="ours", lam=1e-2)])))


def test_a_network_that_knows_nothing_is_not_called_compressed(table, row):
    rows = [
        row(0.1, status="collapsed", mode=mode, regularizer="l1", lam=1e-2, seed=seed) | {"sparsity": sparsity}
        for mode, sparsity in (("baseline", 0.0), ("ours", 0.9))
        for seed in range(3)
    ]
    summary = summarize(table(rows))
    assert summary.compression == () and "smaller" not in headline(summary)


def test_an_edge_of_the_grid_is_of_what_was_measured(table, row):
    failed = [row(0.0, status="failed", mode=m, lam=1e-4) | {"test_accuracy": None} for m in ("baseline", "ours")]
    rows = [row(a, mode=mode, lam=lam) for mode in ("baseline", "ours") for a, lam in ((0.9, 3e-4), (0.8, 1e-3))]
    told = list(caveats(summarize(table(failed + rows))))
    assert any("(0.0003) is the smallest tried; the true best may be smaller." in line for line in told)
    told = list(caveats(summarize(table([*rows, row(0.95, mode="baseline", lam=2e-3)]))))
    assert any("baseline (0.002) is the largest tried; the true best may be larger." in line for line in told)


def test_beside_the_paper_stands_what_is_not_the_papers(table, row):
    rows = [
        row(0.7, dataset="cifar10", model="alexnet", epochs=300, regularizer="l1", mode=mode, seed=seed, gamma=gamma)
        for mode, gamma in (("baseline", None), ("ours", 20))
        for seed in range(3)
    ]
    (beside,) = (t for t in text_tables(summarize(table(rows))) if t.title == "Beside the paper")
    told = {cells[1]: cells[-1] for cells in beside.rows}
    assert "γ=20" in told["L1 ours accuracy"] and "γ=20" not in told["L1 baseline accuracy"]


def test_beside_the_papers_gain_and_compression_stand_ours(table, row):
    fields = {"dataset": "cifar10", "model": "alexnet", "regularizer": "l1"}
    rows = [
        row(0.70, sparsity=0.5, mode="baseline", lam=1e-4, **fields),
        row(0.77, sparsity=0.75, mode="ours", lam=1e-3, **fields),
    ]
    more = row(0.78, sparsity=0.9, mode="ours_orig", lam=1e-3, **fields)
    narrow = [row(0.7, width=0.5, mode=mode, lam=1e-3, **fields) for mode in ("baseline", "ours")]
    for stored, compression in (
        (rows, ("1.9×", "2.0×", "–", "")),
        ([*rows, more], ("1.9×", "5.0×", "–", "ours_orig μ=0.6")),
    ):
        (beside,) = (t for t in text_tables(summarize(table(stored + narrow))) if t.title == "Beside the paper")
        told = [(what, *others) for _, what, *others in beside.rows]
        assert ("L1 relative improvement", "+0.99 %", "+10.00 %", "1, 1", "") in told
        assert told[-1] == ("L1 compression", *compression)
        assert len(told) == 4, "half as wide it is not the paper's network"


def test_lam_0_is_a_level_without_a_multiple_and_no_edge_of_the_grid(table, row):
    rows = [row(0.8, mode=mode, lam=0, seed=seed) for mode in ("baseline", "ours") for seed in range(3)]
    rows += [row(0.1, status="collapsed", mode="baseline", lam=1e-2), row(0.7, mode="ours", lam=1e-2)]
    text = render(summarize(table(rows)), "text", title="x", progress="p", width=400)
    assert "Plain regularization stops learning. " in text
    assert "learns up to λ = 0 and collapses at 0.01; ours γ=5 still learns at 0.01" in text
    assert "the true best may be" not in text
    report = json.loads(render(summarize(table(rows)), "json", title="x", progress="p"))
    assert [level["tolerance_lam"] for level in report["tolerance"]] == [0, 1e-2]


def test_the_report_of_a_search_with_refits_counts_each_question_once(table, row):
    rows = []
    for seed in range(3):
        for mode, gain in (("baseline", 0.0), ("ours", 0.04)):
            accuracy = 0.8 + gain + 0.001 * seed
            for lam in (1e-3, 2e-3):
                chosen = row(accuracy + lam, mode=mode, lam=lam, seed=seed, holdout=0.1)
                rows.append(chosen | {"val_accuracy": accuracy + lam})
            rows.append(row(accuracy, mode=mode, lam=2e-3, seed=seed))
    text = render(summarize(table(rows)), "text", title="x", progress="p", width=400)
    assert (
        "1 of 1 comparison with the best baseline is a significant gain, also after Holm's correction; the largest is "
        "that of ours γ=5 with L2 on mlp6 on digits" in text
    )
    assert "significant, p < 0.0001, Holm < 0.0001" in text
    assert "significant, p < 0.0001, its refit stands for it in Holm's correction" in text
    assert "chosen on the test split" not in text
    assert "not after Holm" not in text


def test_words_about_failed_trials_and_unequal_numbers_of_runs_say_no_more_than_is_known(table, row):
    rows = [row(0.8, mode="baseline", lam=1e-3, seed=seed) for seed in range(3)]
    rows += [row(0.8, mode="baseline", lam=1e-2), row(status="failed", mode="baseline", lam=1e-2, seed=1)]
    text = render(summarize(table(rows)), "text", title="x", progress="p", width=400)
    assert "Plain regularization learns at every λ tried, in the trials that did not fail." in text
    assert "learned at every λ tried, in the trials that did not fail (up to 0.01)." in text
    assert "• Settings differ in their number of runs.\n" in text
    rows = [*rows[3:], row(0.1, status="collapsed", mode="baseline", lam=1e-1)]
    text = render(summarize(table(rows)), "text", title="x", progress="p", width=400)
    assert "learned in all seeds at no λ tried, and collapses at 0.1; no gated mode was tried there." in text
    failed = row(status="failed", mode="ours", lam=1e-1)
    text = render(summarize(table([*rows, failed])), "text", title="x", progress="p", width=400)
    assert "and collapses at 0.1; no gated mode was tried there." in text
    rows.append(row(0.1, status="collapsed", mode="ours", lam=1e-1))
    text = render(summarize(table(rows)), "text", title="x", progress="p", width=400)
    assert "and collapses at 0.1; no gated mode learned there in all seeds." in text


def test_regularization_is_not_blamed_for_what_happens_without_it(table, row):
    rows = [row(0.1, status="collapsed", mode=mode, lam=lam) for mode, lam in (("none", 0.0), ("baseline", 1e-3))]
    text = render(summarize(table(rows)), "text", title="x", progress="p", width=400)
    assert "The network does not learn without regularization either." in text
    assert "collapses at 0.001, as the network does without any; no gated mode was tried there." in text
    assert "Plain regularization stops" not in text


def test_the_headline_says_what_holms_correction_took_away(table, row):
    rows = []
    for model, gain in (("mlp5", 0.007), ("mlp6", 0.0), ("mlp7", -0.01)):
        for seed, noise in enumerate((0.0, 0.004, 0.008, 0.002)):
            rows.append(row(0.80 + noise, mode="baseline", lam=1e-3, seed=seed, model=model))
            rows.append(row(0.80 + gain + noise / 2, mode="ours", lam=1e-3, seed=seed, model=model))
    text = render(summarize(table(rows)), "text", title="x", progress="p", width=400)
    assert re.search(r"is significant after Holm's correction \(3 tested, 1 significant alone\)", text)


def test_one_network_that_learns_nothing_is_not_all_of_them(table, row):
    rows = [row(0.1, status="collapsed", mode=mode, lam=lam) for mode, lam in (("none", 0.0), ("baseline", 1e-3))]
    rows += [row(0.9, mode=mode, lam=lam, model="mlp2") for mode, lam in (("none", 0.0), ("baseline", 1e-3))]
    text = render(summarize(table(rows)), "text", title="x", progress="p", width=400)
    assert "In 1 of 2 λ sweeps networks do not learn without regularization either." in text


def test_half_of_the_seeds_is_not_none(table, row):
    rows = [row(None, status="diverged", mode="none", lam=0.0, seed=seed) for seed in range(2)]
    rows += [row(0.97, mode="none", lam=0.0, seed=seed) for seed in range(2, 4)]
    rows.append(row(0.1, status="collapsed", mode="baseline", lam=1e-3))
    text = render(summarize(table(rows)), "text", title="x", progress="p", width=400)
    assert "as the network does without any" not in text
    assert "• 2 trials diverged in their first epoch and are in no mean, nor is" in text
    assert "last finite epoch" not in text
    rows.append(row(0.5, status="diverged", mode="none", lam=0.0, seed=4))
    text = render(summarize(table(rows)), "text", title="x", progress="p", width=400)
    assert "• 1 trial diverged and counts with its last finite epoch.\n• 2 trials diverged in their first" in text


def test_of_what_was_chosen_on_held_out_images_the_test_accuracies_are_named_as_such(table, row):
    rows = []
    for seed in range(3):
        for mode, lam, chosen, told, sparsity in (
            ("baseline", 1e-4, 0.90, 0.95, 0.1),
            ("ours", 1e-3, 0.91, 0.93, 0.6),
            ("ours", 2e-3, 0.895, 0.955, 0.9),
        ):
            one = row(told, mode=mode, lam=lam, seed=seed, regularizer="l1", sparsity=sparsity, holdout=0.1)
            rows.append(one | {"val_accuracy": chosen})
    text = render(summarize(table(rows)), "text", title="x", progress="p", width=400)
    assert "chosen on the held-out images; accuracies are those on the test images." in text
    assert "At the baseline's validation accuracy, networks are up to 2.2 times smaller." in text
    assert "keeps the best baseline's validation accuracy (93.00 % against 95.00 % on the test images)" in text
    assert "for at most one point of validation accuracy (95.50 % on the test images), ours γ=5" in text


def test_the_verdict_says_what_plain_regularization_reaches_for_the_same_price(table, row):
    rows = []
    for seed in range(3):
        for mode, lam, accuracy, sparsity in (
            ("baseline", 1e-4, 0.90, 0.0), ("baseline", 2e-4, 0.893, 0.5), ("ours", 1e-3, 0.892, 0.8),
        ):  # fmt: skip
            rows.append(row(accuracy, mode=mode, lam=lam, seed=seed, regularizer="l1", sparsity=sparsity))
    text = render(summarize(table(rows)), "text", title="x", progress="p", width=400)
    assert "for 0.80 points of accuracy, ours γ=5 at λ = 0.001 is 5.0 times smaller (sparsity 0.800), " in text
    assert "and plain regularization at λ = 0.0002 is 2.0 times smaller within a point." in text
    text = render(summarize(table([r for r in rows if r["lam"] != 2e-4])), "text", title="x", progress="p", width=400)
    assert "and plain regularization is no smaller within a point." in text


def test_of_several_methods_of_a_mode_the_smallest_is_named(table, row):
    rows = [row(0.8, mode="baseline", lam=1e-4, regularizer="l1")]
    rows += [
        row(0.8, mode="ours", lam=1e-3, gamma=gamma, sparsity=gamma / 40, regularizer="l1") for gamma in (5, 10, 20)
    ]
    summary = summarize(table(rows))
    text = render(summary, "text", title="x", progress="p", width=400)
    assert "L1: ours γ=20 at λ = 0.001 keeps the best baseline's accuracy" in text
    (compression,) = (t for t in text_tables(summary) if t.title.startswith("Compression"))
    assert compression.rows[0][2] == "ours γ=20 0.500 at 0.001 (80.00 %)"


def test_of_gated_modes_that_were_not_tried_nothing_is_said(table, row):
    rows = [row(0.8, mode=mode, lam=1e-3, regularizer="l1") for mode in ("none", "baseline")]
    assert "no gated setting" not in render(summarize(table(rows)), "text", title="x", progress="p")
    rows.append(row(0.7, mode="ours", lam=1e-3, regularizer="l1"))
    assert "no gated setting" in render(summarize(table(rows)), "text", title="x", progress="p")


def test_within_a_point_of_what_is_said(table, row):
    fields = {"regularizer": "l1", "seed": 0}
    rows = [row(0.8, mode="baseline", lam=1e-4, **fields), row(0.795, mode="ours", lam=1e-3, sparsity=0.5, **fields)]
    assert headline(summarize(table(rows))).endswith(
        "too few runs, or no spread. Within one point of the baseline's accuracy, networks are up to 2.0 times smaller."
    )


def test_regularization_that_learns_at_the_largest_lam_did_not_stop_learning(table, row):
    rows = [row(0.9, mode="baseline", lam=lam, seed=seed) for lam in (1e-3, 1e-2) for seed in range(3)]
    rows.append(row(0.1, status="collapsed", mode="baseline", lam=1e-3, seed=3))
    assert headline(summarize(table(rows))) == "Plain regularization fails in some seeds."
    rows.append(row(0.1, status="collapsed", mode="baseline", lam=1e-1))
    assert headline(summarize(table(rows))) == "Plain regularization stops learning."


def test_an_interval_that_contradicts_p_has_its_caveat(table, row):
    def told(*ours):
        rows = [row(accuracy, mode="ours", lam=1e-3, seed=seed) for seed, accuracy in enumerate(ours)]
        rows += [row(accuracy, mode="baseline", lam=1e-3, seed=seed) for seed, accuracy in enumerate((0.1, 0.2, 0.3))]
        summary = summarize(table(rows))
        (compared,) = summary.comparisons
        return compared, "Bootstrap intervals (95 % of diff.) are too narrow" in " ".join(caveats(summary))

    compared, said = told(0.35, 0.4, 0.9)
    assert compared.difference_low > 0 and not compared.significant and said
    compared, said = told(0.8, 0.85, 0.9)
    assert compared.difference_low > 0 and compared.significant and not said
    compared, said = told(0.1, 0.2, 0.4)
    assert compared.difference_low < 0 < compared.difference_high and not said


def test_lam_that_was_never_imposed_has_its_caveat(table, row):
    rows = [row(0.9, mode=mode, lam=1e-3) | {"imposed_fraction": 0.0} for mode in ("none", "ours", "ours_orig")]
    rows.append(row(0.9, mode="ours", lam=1e-2))
    said = "In 2 gated settings λ was never imposed: that is training without L1/L2."
    assert said in caveats(summarize(table(rows)))


def test_json_has_the_contract(summary):
    report = json.loads(render(summary, "json", title="x", progress="p"))
    setting = {"dataset", "model", "regularizer", "mode", "lam", "mu", "gamma", "n", "accuracy_mean", "accuracy_ci95"}
    compared = {"dataset", "model", "regularizer", "mode", "baseline_lam", "ours_lam", "baseline_accuracy"}
    compared |= {"ours_accuracy", "relative_improvement", "p_value", "significant", "tolerance_lam"}
    small = {"dataset", "model", "baseline_lam", "baseline_sparsity", "baseline_accuracy", "ours_lam"}
    small |= {"ours_sparsity", "ours_accuracy", "compression"}
    for key, names in (("settings", setting), ("comparisons", compared), ("compression", small)):
        assert report[key]
        assert all(names <= set(record) for record in report[key])


def test_json_has_the_numbers_of_both_settings_and_null_where_there_is_none(summary, table, row):
    report = json.loads(render(summary, "json", title="x", progress="p"))
    (compared,) = (c for c in report["comparisons"] if c["regularizer"] == "l2" and c["mode"] == "ours")
    told = {"baseline_lam": 1e-3, "baseline_n": 3, "ours_lam": 1e-2, "ours_gamma": "5", "ours_mu": None, "ours_n": 3}
    assert {name: compared[name] for name in told} == told
    means = [compared[name] for name in ("baseline_accuracy", "ours_accuracy", "relative_improvement")]
    assert means == pytest.approx([0.801, 0.851, 0.05 / 0.801])
    assert compared["ours_ci95"] == pytest.approx(4.302653 * 0.001 / 3**0.5)

    def small(*gated):
        rows = [row(0.80, sparsity=0.5, mode="baseline", lam=1e-4, regularizer="l1")]
        rows += [row(a, sparsity=s, mode="ours", lam=lam, regularizer="l1") for lam, a, s in gated]
        (found,) = json.loads(render(summarize(table(rows)), "json", title="x", progress="p"))["compression"]
        return found

    found = small((1e-3, 0.85, 0.75), (2e-3, 0.795, 0.9), (3e-3, 0.7, 1.0))
    for prefix, mode, gamma, lam, accuracy, sparsity in (
        ("baseline_", None, None, 1e-4, 0.80, 0.5),
        ("ours_", "ours", "5", 1e-3, 0.85, 0.75),
        ("near_", "ours", "5", 2e-3, 0.795, 0.9),
        ("plain_", "baseline", None, 1e-4, 0.80, 0.5),
    ):
        names = [prefix + name for name in ("mode", "gamma", "lam", "accuracy", "sparsity")]
        assert [found.get(name) for name in names] == [mode, gamma, lam, accuracy, sparsity]
    rates = [found[name] for name in ("compression", "near_compression", "plain_compression")]
    assert rates == pytest.approx([2.0, 5.0, 1.0])
    found = small((3e-3, 0.7, 1.0))
    nothing = {
        name: value for name, value in found.items() if name.startswith(("ours_", "near_")) or name == "compression"
    }
    assert len(nothing) == 18 and set(nothing.values()) == {None}


def test_csv_has_a_row_a_setting(summary):
    rows = list(csv.DictReader(io.StringIO(render(summary, "csv", title="x", progress="p"))))
    assert len(rows) == len(summary.settings)
    assert float(rows[0]["accuracy_mean"]) == summary.settings[0].accuracy_mean


def test_the_csv_of_an_empty_store_has_the_same_columns(summary, table):
    some, none = (render(each, "csv", title="x", progress="p") for each in (summary, summarize(table([]))))
    assert none.splitlines() == some.splitlines()[:1]


def test_markdown_cannot_be_broken_by_a_name(summary):
    text = render(summary, "markdown", title="<script>|", progress="p")
    assert "<script>" not in text


def test_an_empty_store_has_a_report_too(table):
    for form in TEXT_FORMATS:
        assert render(summarize(table([])), form, title="x", progress="0 of 5") is not None


def test_the_papers_values_stand_beside_ours(table, row):
    fields = {"dataset": "cifar100", "model": "alexnet", "regularizer": "l2", "lam": 1e-3}
    rows = [row(0.46, mode="baseline", **fields), row(0.47, mode="ours", **fields)]
    text = render(summarize(table(rows)), "text", title="x", progress="p", width=200)
    assert "46.91 ± 0.15 %" in text
    assert "+1.56 %" in text
    (line,) = [line for line in text.splitlines() if "baseline accuracy" in line]
    assert re.search(r"46\.00 % +1$", line.rstrip()), "nothing is other than the paper's"
    rows = [each | {"epochs": 6, "batch_size": 64} for each in rows]
    text = render(summarize(table(rows)), "text", title="x", progress="p", width=200)
    (line,) = [line for line in text.splitlines() if "baseline accuracy" in line]
    assert line.rstrip().endswith("epochs 6, batch_size 64")


def test_networks_are_named_by_what_tells_them_apart(table, row):
    rows = [
        row(0.8, mode="baseline", lam=1e-3, lr=lr, augment=augment, **fields)
        for fields in ({"dataset": "cifar10", "model": "alexnet"}, {"dataset": "svhn", "model": "vgg11", "width": 0.5})
        for lr, augment in ((0.1, True), (0.1, False), (0.05, False))
    ]
    rows += [row(0.8, mode="baseline", lam=1e-3), row(0.9, mode="ours", gamma="auto", gamma_threshold=0.7, lam=1e-3)]
    summary = summarize(table(rows))
    assert sorted({setting.network for setting in summary.settings}) == [
        "alexnet on cifar10 (lr 0.05, augment false)",
        "alexnet on cifar10 (lr 0.1, augment false)",
        "alexnet on cifar10 (lr 0.1, augment true)",
        "mlp6 on digits",
        "vgg11 on svhn (width 0.5, lr 0.05, augment false)",
        "vgg11 on svhn (width 0.5, lr 0.1, augment false)",
        "vgg11 on svhn (width 0.5, lr 0.1, augment true)",
    ]
    for form in TEXT_FORMATS:
        text = render(summary, form, title="x", progress="p", width=400)
        assert "alexnet on cifar10 (lr 0.05, augment false)" in text
    assert "ours γ=auto (π > 0.7)" in render(summary, "text", title="x", progress="p", width=400)


def test_what_a_search_chose_stands_beside_lam(table, row):
    rows = [
        row(0.8 + lr, mode=mode, lam=1e-3, lr=lr, seed=seed, regularizer=regularizer)
        for mode in ("baseline", "ours")
        for lr in (0.03, 0.04)
        for seed in range(3)
        for regularizer in ("l1", "l2")
    ]
    search = Searched(tuned=frozenset({"lr"}), objectives=("test_accuracy",), asked={})
    summary = summarize(table(rows), search)
    text = render(summary, "text", title="x", progress="p", width=400)
    assert (
        "best ours γ=5 84.00 ± 0.00 % at λ = 0.001, lr 0.04 against best baseline 84.00 ± 0.00 % at 0.001, lr 0.04"
        in text
    )
    assert "baseline  0.001, lr 0.03" in text
    (setting, *_) = json.loads(render(summary, "json", title="x", progress="p"))["settings"]
    assert (setting["lr"], setting["network"]) == (0.03, "mlp6 on digits")


def test_a_level_that_took_one_trial_is_told_as_well(table, row):
    rows = [row(0.9, mode=mode, lam=0.01, model=model) for mode in ("baseline", "ours") for model in ("mlp2", "mlp5")]
    rows[1] |= row(0.1, status="collapsed", mode="baseline", lam=0.01, model="mlp5")
    rows.append(row(0.8, mode="baseline", lam=0.005, model="mlp5"))
    summary = summarize(table(rows))  # of `gcsr tolerance`, which tries the largest λ first
    assert headline(summary).startswith("Plain regularization stops learning in 1 of 2 λ sweeps; gated, ")
    text = render(summary, "text", title="x", progress="p", width=400)
    assert "mlp2 on digits, L2: plain regularization learned at every λ tried (up to 0.01)." in text
    (levels,) = (t for t in text_tables(summary) if t.title.startswith("Tolerance"))
    assert [(cells[0][:4], cells[2], *cells[3:]) for cells in levels.rows] == [
        ("mlp2", "baseline", "0.01", "–"),
        ("mlp2", "ours γ=5", "0.01", "–"),
        ("mlp5", "baseline", "0.005", "0.01"),
        ("mlp5", "ours γ=5", "0.01", "–"),
    ]
    (told,) = (line for line in caveats(summary) if "one λ only" in line)
    assert (
        told == "mlp5 on digits, L2: ours was tried at one λ only (0.01), which is compared with the best of several."
    )


@pytest.mark.parametrize("width", [80, 100])
def test_a_narrow_terminal_breaks_no_number(table, row, width):
    rows = [
        row(accuracy + seed / 1000, mode=mode, lam=lam, seed=seed, regularizer=regularizer)
        for mode, lam, accuracy in (("baseline", 3.689e-4, 0.9), ("ours_orig", 6.654e-3, 0.8), ("ours", 2e-3, 0.123))
        for regularizer in ("l1", "l2")
        for seed in range(3)
    ]
    rows.append(row(0.1, status="collapsed", mode="baseline", lam=0.01))
    text = render(summarize(table(rows)), "text", title="x", progress="p", width=width)
    assert max(map(len, text.partition(AGAIN)[0].splitlines())) <= width  # commands are to be copied
    if width == 80:
        text = text.partition("\nAccuracy, best")[0]  # twelve columns, which such long λ leave no room for
    words = {word.strip("().") for word in text.split()}
    assert words >= {"0.0003689", "0.006654", "ours_orig", "collapsed", "digits"}
    assert not words & {"0.00036", "0.000368", "ours_ori", "ours_", "collapse", "-11.1", "digit"}
