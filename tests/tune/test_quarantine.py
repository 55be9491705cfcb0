"""A node in quarantine, on a real cluster."""

import multiprocessing
import time

import pytest


@pytest.mark.slow
def test_it_takes_every_place_of_a_node_and_of_no_other(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # the cluster lives on this machine, and for this test …
    process = multiprocessing.get_context("spawn").Process(target=_close_a_node)  # … and Ray reads it once a process
    process.start()
    process.join(timeout=300)
    assert process.exitcode == 0


def _close_a_node():
    import ray
    from ray.cluster_utils import Cluster

    from tune.quarantine import Quarantine

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    fit = ray.nodes()[0]["NodeID"]
    joined = cluster.add_node(num_cpus=5)
    (unfit,) = (node for node in ray.nodes() if node["NodeID"] != fit)
    quarantine = Quarantine({"CPU": 2.0})

    def wait_for(cpus):
        deadline = time.monotonic() + 30
        while ray.available_resources().get("CPU") != cpus and time.monotonic() < deadline:
            time.sleep(0.1)
        assert ray.available_resources()["CPU"] == cpus

    quarantine.close(unfit)
    wait_for(2 + 1)
    tasks = ray.remote(num_cpus=2)(lambda: ray.get_runtime_context().get_node_id())
    assert set(ray.get([tasks.remote() for _ in range(4)])) == {fit}
    cluster.remove_node(joined)
    quarantine.forget(unfit)
    cluster.add_node(num_cpus=4)
    wait_for(2 + 4)
    ray.shutdown()
    cluster.shutdown()
