import pytest

from gcsr import InvalidInputError
from tests.tune.stores import job
from tune.placement import plan_trials


@pytest.mark.parametrize(
    ("nodes", "fields", "resources", "slots"),
    [
        ([{"CPU": 2}], {}, {"CPU": 1}, 2),
        ([{"CPU": 8}], {"threads": 3}, {"CPU": 3}, 2),
        ([{"CPU": 2}, {"CPU": 3}], {"workers": 2}, {"CPU": 1}, 2),
        ([{"CPU": 3}, {"CPU": 3}], {"workers": 2, "threads": 2}, {"CPU": 2}, 1),  # two whole workers, not three
        ([{"CPU": 16, "GPU": 4}], {}, {"CPU": 1, "GPU": 1}, 4),
        ([{"CPU": 2, "GPU": 4}], {"workers": 2}, {"CPU": 1, "GPU": 1}, 1),  # the cores are too few for the GPUs
        ([{"CPU": 16, "GPU": 4}], {"device": "cpu"}, {"CPU": 1}, 16),
        ([{"CPU": 64, "GPU": 2}], {"gpu_share": 1 / 49}, {"CPU": 1, "GPU": 1 / 49}, 64),  # 49 on each, and the cores
        ([{"CPU": 100, "GPU": 2}], {"gpu_share": 1 / 49}, {"CPU": 1, "GPU": 1 / 49}, 98),
        ([{"CPU": 16, "GPU": 2}], {"gpu_share": 0.6}, {"CPU": 1, "GPU": 0.6}, 2),  # not three: none lies on both
        ([{"CPU": 16}, {"CPU": 4, "GPU": 1}], {}, {"CPU": 1, "GPU": 1}, 1),  # auto: the node without one stays idle
    ],
)
def test_what_fits(nodes, fields, resources, slots):
    plan = plan_trials(job(**fields), nodes)
    assert plan.resources == resources
    assert plan.slots == slots


@pytest.mark.parametrize(
    ("nodes", "fields", "words"),
    [
        ([{"CPU": 2}], {"threads": 3}, "threads: a trial that needs 3 CPU"),
        ([{"CPU": 2}], {"workers": 3}, "workers: 3 workers of 1 CPU can never run; expected at most 2"),
        ([{"CPU": 3}, {"CPU": 3}], {"workers": 3, "threads": 2}, "expected at most 2"),
        ([{"CPU": 2}], {"device": "cuda"}, "device: a trial that needs 1 GPU"),
        ([], {}, "expected at most 0"),
        ([{"CPU": 4}], {"workers": 2, "cohort": 8}, "cohort: 8 is not allowed with 2 workers a trial; expected 1"),
        (
            [{"CPU": 4}],
            {"workers": 2, "trials_per_gpu": 4},
            "trials_per_gpu: 4 is not allowed with 2 workers",
        ),
    ],
)
def test_what_can_never_run_is_refused(nodes, fields, words):
    with pytest.raises(InvalidInputError, match=words.replace("(", r"\(")):
        plan_trials(job(**fields), nodes)
