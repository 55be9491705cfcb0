"""What a cluster has and may grow to; waiting for nodes on a real one."""

import pytest

from tests.tune.conftest import wait_for_cpus
from tests.tune.stores import job
from tune.capacity import Launched, plan_on_cluster
from tune.placement import TooSmallError, plan_trials


def launcher(**types):
    """What the launcher leaves on the head."""
    head = {"resources": {"CPU": 0}, "node_config": {}}
    return {"max_workers": 6, "head_node_type": "head", "available_node_types": {"head": head} | types}


def test_the_launchers_file():
    gpu = {"resources": {"CPU": 4, "GPU": 1}, "min_workers": 1, "max_workers": 4}
    cpu = {"resources": {"CPU": 8}, "max_workers": 10}
    found = Launched.of(launcher(gpu=gpu, cpu=cpu))
    assert found.least == 2
    assert found.grows
    assert found.largest == [{"CPU": 0}] + 4 * [{"CPU": 4, "GPU": 1}] + 2 * [{"CPU": 8}], "at most six workers in all"
    assert plan_trials(job(), found.largest).slots == 4
    onprem = Launched.of(
        {
            "max_workers": 2,
            "head_node_type": "local.cluster.node",
            "available_node_types": {"local.cluster.node": {"resources": {}, "min_workers": 2, "max_workers": 2}},
        }
    )
    assert (onprem.least, onprem.largest, onprem.grows) == (3, None, False)


@pytest.mark.slow(20)
def test_it_refuses_waits_and_goes_on_when_a_node_has_joined(on_cluster):
    on_cluster(_wait_for_a_node, cpus=0)


def _wait_for_a_node(cluster):
    said = []
    with pytest.raises(TooSmallError, match=r"threads: a trial that needs 1 CPU a worker can never run") as refused:
        plan_on_cluster(job(), None, said.append)
    assert "waited" not in str(refused.value)
    assert not said
    with pytest.raises(TooSmallError, match=r"waited 1 s"):
        plan_on_cluster(job(), 1.0, said.append)
    assert said == ["waiting for the cluster: a trial takes 1 CPU; there is a node of 0 CPU; 0 of at most 1 s"]

    def say(line):  # Ray starts nodes only from the main thread, which is the one that waits and says so
        said.append(line)
        cluster.add_node(num_cpus=3)

    plan = plan_on_cluster(job(workers=2), 60.0, say)
    assert plan.slots == 1
    assert "a trial takes 2 workers of 1 CPU" in said[-1]
    wait_for_cpus(3)  # what was asked for is given back
