"""A node in quarantine, on a real cluster."""

import pytest

from tests.tune.conftest import wait_for_cpus
from tune.quarantine import Quarantine


@pytest.mark.slow(20)
def test_it_takes_every_place_of_a_node_and_of_no_other(on_cluster):
    on_cluster(_close_a_node, cpus=2)


def _close_a_node(cluster):
    import ray

    fit = ray.nodes()[0]["NodeID"]
    joined = cluster.add_node(num_cpus=5)
    (unfit,) = (node for node in ray.nodes() if node["NodeID"] != fit)
    quarantine = Quarantine({"CPU": 2.0})
    quarantine.close(unfit)
    wait_for_cpus(2 + 1)
    tasks = ray.remote(num_cpus=2)(lambda: ray.get_runtime_context().get_node_id())
    assert set(ray.get([tasks.remote() for _ in range(4)])) == {fit}
    cluster.remove_node(joined)
    quarantine.forget(unfit)
    cluster.add_node(num_cpus=4)
    wait_for_cpus(2 + 4)
