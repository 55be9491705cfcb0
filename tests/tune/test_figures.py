"""Figures as data: which axes they have."""

import re
from dataclasses import replace

import pytest

from tune.aggregate import summarize
from tune.curves import Curve
from tune.figures import figures
from tune.plotly_figures import plotly_figure
from tune.static_figures import write_figures


def over_lam(table, row, levels, accuracy):
    rows = [row(accuracy, mode=mode, lam=lam) for mode in ("baseline", "ours") for lam in levels]
    (found,) = (f for f in figures(summarize(table(rows)), []) if f.name.startswith("accuracy-over-lam"))
    return found


@pytest.mark.parametrize(("accuracy", "top"), [(0.4, 44.0), (0.98, 103.0)])
def test_accuracies_fill_their_axis(table, row, accuracy, top):
    assert over_lam(table, row, [1e-3, 1e-2], accuracy).y_range == pytest.approx((0.0, top))


@pytest.mark.parametrize(("collapsed", "top"), [(0.01, 46.2), (0.0, 46.2)])
def test_what_is_reached_without_regularization_is_in_the_figure(table, row, collapsed, top):
    rows = [row(0.42, mode="none", lam=0, regularizer="none"), row(collapsed, status="collapsed", lam=1e-2)]
    (found,) = (f for f in figures(summarize(table(rows)), []) if f.name.startswith("accuracy-over-lam"))
    assert found.y_range == pytest.approx((0.0, top))


def test_an_axis_of_nothing_but_zeros_has_a_length(table, row):
    assert over_lam(table, row, [1e-3, 1e-2], 0.0).y_range == (0.0, 103.0)


@pytest.mark.parametrize(
    ("levels", "ticks"),
    [
        ([1e-3], [1e-3]),
        ([3e-4, 7e-4, 1.5e-3, 3e-3], [3e-4, 7e-4, 1.5e-3, 3e-3]),
        ([1e-4, 1.1e-4, 1.2e-4, 1e-2, 1.1e-2], [1e-4, 1e-2]),  # no label upon another
        ([0, 1e-3, 1e-2], [1e-3, 1e-2]),  # a logarithmic axis has no 0
    ],
)
def test_what_was_tried_is_labelled_where_there_is_room(table, row, levels, ticks):
    assert list(over_lam(table, row, levels, 0.5).x_ticks) == ticks


def test_the_caption_of_curves_says_what_is_drawn(table, row):
    fine = row(0.9, mode="baseline", lam=1e-3), row(0.9, mode="ours", lam=1e-3)
    for rows, told in (
        (fine, "epoch; each mode at its best λ (the paper's"),
        (
            (*fine, row(0.1, status="collapsed", mode="baseline", lam=1e-2)),
            "best λ, and where the baseline collapses (",
        ),
    ):
        summary = summarize(table(rows))
        curves = [Curve(setting, (0,), (1.0,), (1.0,), (1.0,), (1.0,)) for setting in summary.settings]
        drawn = [f for f in figures(summary, curves) if f.x_title == "epoch"]
        assert len(drawn) == 4 and all(told in figure.caption for figure in drawn)


@pytest.mark.parametrize(("epochs", "step"), [(2, 1), (3, 1), (9, 1), (60, None)])
def test_between_two_epochs_there_is_no_tick(table, row, epochs, step, tmp_path):
    summary = summarize(table([row(0.9, mode="baseline", lam=1e-3)]))
    values = (0.5,) * epochs
    curves = [Curve(setting, tuple(range(epochs)), values, values, values, values) for setting in summary.settings]
    figure = next(found for found in figures(summary, curves) if found.x_title == "epoch")
    assert plotly_figure(figure)["layout"]["xaxis"].get("dtick") == step
    assert "dtick" not in plotly_figure(replace(figure, x_whole=False))["layout"]["xaxis"]
    svg = next(path for path in write_figures([figure], tmp_path) if path.suffix == ".svg").read_text()
    labels = re.findall(r">([^<]*)</text>", svg[svg.index("matplotlib.axis_1") : svg.index("matplotlib.axis_2")])
    assert labels.pop() == "epoch"
    assert len(labels) >= 2
    assert all(label.lstrip("−").isdecimal() for label in labels)
