"""Specs: what they span, and that everything else is one clear line."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gcsr import ConfigError, InvalidInputError
from tune.spec import SweepSpec, load_spec, parse_assignment, parse_yaml, shipped_specs

SETS = [f"paper-{d}-{m}-{r}" for d in ("cifar10", "cifar100") for m in ("alexnet", "vgg16") for r in ("l1", "l2")]
SETS += [f"paper-svhn-{m}-{r}" for m in ("vgg11", "vgg16", "vgg19") for r in ("l1", "l2")]


def test_the_papers_fourteen_experiment_sets_are_shipped_and_paper_is_all_of_them():
    ids = {trial.trial_id for name in SETS for trial in load_spec(name).trials()}
    assert len(SETS) == 14
    assert {trial.trial_id for trial in load_spec("paper").trials()} == ids


def test_the_papers_sets_compute_as_torch_does_by_default():
    names = [*SETS, "paper", "cifar100-none"]
    assert {trial.precision for name in names for trial in load_spec(name).trials()} == {"tf32"}


@pytest.mark.parametrize("name", shipped_specs())
def test_every_shipped_spec_has_three_seeds_and_at_least_eight_lams(name):
    trials = load_spec(name).trials()
    assert len({t.trial_id for t in trials}) == len(trials)
    assert {t.seed for t in trials} == {0, 1, 2}
    for regularizer in {t.regularizer for t in trials} - {"none"}:
        assert len({t.lam for t in trials if t.regularizer == regularizer}) >= 8


def test_values_that_a_mode_does_not_read_are_not_spanned():
    spec = SweepSpec(
        experiment="x",
        grid={
            "mode": ["none", "baseline", "ours", "ours_orig"],
            "regularizer": ["l1", "l2"],
            "lam": [0.1, 0.2],
            "mu": [0.5, 0.6],
            "gamma": [5, 10, "auto"],
            "seed": [0, 1],
        },
    )
    trials = spec.trials()
    count = {mode: sum(t.mode == mode for t in trials) for mode in ("none", "baseline", "ours", "ours_orig")}
    assert count == {"none": 2, "baseline": 8, "ours": 24, "ours_orig": 16}


def test_lam_may_differ_between_regularizers():
    spec = SweepSpec(
        experiment="x", grid={"regularizer": ["l1", "l2"], "mode": "baseline", "lam": {"l1": [1e-5], "l2": [0.1, 0.2]}}
    )
    assert sorted((t.regularizer, t.lam) for t in spec.trials()) == [("l1", 1e-5), ("l2", 0.1), ("l2", 0.2)]


def test_seeds_complete_one_after_the_other():
    seeds = [t.seed for t in load_spec("digits").trials()]
    assert seeds == sorted(seeds)


def test_assignments_replace_the_grid_everywhere():
    spec = load_spec("paper", dict([parse_assignment("lam=[1e-3]"), parse_assignment("dataset=cifar10")]))
    assert {(t.dataset, t.lam) for t in spec.trials() if t.mode == "ours"} == {("cifar10", 1e-3)}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("3", 3),
        ("[1e-4, .5]", [1e-4, 0.5]),
        ("auto", "auto"),
        ("010", 10),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("0x10", "0x10"),
        ("-7", -7),
    ],
)
def test_yaml_numbers_are_what_people_mean(text, value):
    parsed = parse_yaml(text, "here")
    assert parsed == value
    assert type(parsed) is type(value)


WRONG = {
    "unknown key": "experiment: x\ngird: {}\n",
    "no experiment": "grid: {seed: 0}\n",
    "unknown field": "experiment: x\ngrid: {lambda: 0.1}\n",
    "negative lam": "experiment: x\ngrid: {lam: -1}\n",
    "nan": "experiment: x\ngrid: {lam: .nan}\n",
    "infinite": "experiment: x\ngrid: {lam: [1, .inf]}\n",
    "empty list": "experiment: x\ngrid: {seed: []}\n",
    "lam of lam": "experiment: x\ngrid: {lam: {l2: {l1: 1}}}\n",
    "twice": "experiment: x\ngrid: {seed: [1, 1]}\n",
    "text for a number": "experiment: x\ngrid: {lam: strong}\n",
    "bool for a number": "experiment: x\ngrid: {epochs: true}\n",
    "float for an integer": "experiment: x\ngrid: {seed: 0.5}\n",
    "nested": "experiment: x\ngrid: {seed: {a: 1}}\n",
    "a list": "- experiment\n",
    "empty": "",
    "a key twice": "experiment: x\nexperiment: y\n",
    "not yaml": "experiment: [\n",
    "a bomb": "a: &a [1, 1]\nb: &b [*a, *a]\nexperiment: x\n",
    "a tag": "experiment: !!python/object/apply:os.system [ls]\n",
    "a name with markup": "experiment: <script>\n",
    "unknown mode": "experiment: x\ngrid: {mode: yours}\n",
    "unknown model": "experiment: x\ngrid: {model: resnet50}\n",
    "null": "experiment: x\ngrid: {lam: null}\n",
    "a control character": "experiment: \x00\n",
    "deep": "experiment: " + "[" * 3000 + "\n",
}


def test_the_keys_of_a_search_are_all_named(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text("experiment: x\nsearch: 5\n")
    with pytest.raises(InvalidInputError, match="some of the keys space, sampler, objectives, sampler_seed, pruner"):
        load_spec(str(path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"include: [3]", "include.0: 3 is not allowed; expected a mapping from fields to values"),
        (
            b"search: {objectives: val_accuracy}",
            "search.objectives: 'val_accuracy' is not allowed; "
            "expected a list of one or two of val_accuracy, test_accuracy, sparsity",
        ),
        (b"search: {space: {lam: {low: 0.1, hi: 0.1}}}", "search.space.lam.high is missing; expected a number"),
        (b"search: {space: {gamma: {low: 1.5, high: 3}}}", "gamma: 1.5 is not allowed; expected an integer"),
        (b"search: {space: {lam: 3}}", "search.space.lam: 3 is not allowed; expected a mapping with low, high and"),
        (b"grid: {<<: {lam: 1}}", "merge keys (<<) are not allowed"),
        (b"description: caf\xe9", "is not UTF-8"),
        ("grid: {}".encode("utf-16"), "is not UTF-8"),
        (b"grid: {lamm: 1}", "holdout; did you mean lam?"),
    ],
)
def test_what_is_wrong_is_said_in_plain_words(text, words, tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_bytes(b"experiment: x\n" + text)
    with pytest.raises(InvalidInputError) as caught:
        load_spec(str(path))
    assert words in str(caught.value)


def test_a_field_to_set_that_is_unknown_is_answered_with_all_that_are_known():
    with pytest.raises(ConfigError, match=r"lamm: 1 is not allowed; .* holdout, workers; did you mean lam\?$"):
        load_spec("digits", {"lamm": 1})
    with pytest.raises(ConfigError, match=r"colour: 1 is not allowed; .* holdout, workers$"):
        load_spec("digits", {"colour": 1})


def test_shipped_specs_are_in_the_order_of_their_names():
    names = list(shipped_specs())
    assert names == sorted(names)
    assert names.index("digits") < names.index("digits-depth")


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_spec_is_one_clear_line(case, tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(WRONG[case])
    with pytest.raises(InvalidInputError) as caught:
        load_spec(str(path)).trials()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_combinations_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="model"):
        SweepSpec(experiment="x", grid={"dataset": "digits", "model": "vgg16"}).trials()
    with pytest.raises(ConfigError, match="combinations"):
        SweepSpec(experiment="x", grid={"seed": list(range(2000)), "lam": [i / 1e3 for i in range(1000)]}).trials()


@settings(max_examples=200)
@given(st.text(max_size=200))
def test_any_text_is_a_spec_or_one_clear_line(text):
    try:
        parse_yaml(text, "here")
    except InvalidInputError as error:
        assert "\n" not in str(error)


@settings(max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(["lam", "seed", "mode", "gamma", "epochs", "model", "nonsense"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
            max_leaves=4,
        ),
    )
)
def test_any_grid_is_trials_or_one_clear_line(grid):
    try:
        SweepSpec(experiment="x", grid=grid).trials()
    except ValueError as error:  # pydantic's ValidationError is one; load_spec folds it into a line
        assert str(error)
