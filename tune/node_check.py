"""Whether the nodes of a cluster can serve a sweep: each sees the store, and has the same data and networks."""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gcsr import InvalidInputError, TrialConfig
from gcsr.arrays import digest
from gcsr.names import is_own_network
from tune.filesystem import one_line
from tune.job import SweepJob
from tune.networks import check_networks, network_digests, to_be_built
from tune.node_data import local_arrays
from tune.store import Store
from tune.terminal import complain
from tune.words import short_digest

__all__ = ["NodeChecks", "NodeReport"]

_SAY_EVERY = 20.0  # seconds


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a node found about itself.

    Attributes:
        problem: why it cannot serve; None if it can.
        digests: SHA-256 of each data set that it has, and of the module of each network that is the user's own.
    """

    problem: str | None = None
    digests: dict[str, str] = field(default_factory=dict)


class NodeChecks:
    """Checks each node once: those that are there at the start together, and each that joins.

    Args:
        job: of the sweep.
        trials: some that use every data set and network of the sweep.
        needed: resources of one worker; nodes that lack them run nothing and are not checked.
    """

    def __init__(self, job: SweepJob, trials: Sequence[TrialConfig], needed: Mapping[str, float]) -> None:
        self._job, self._needed = job, needed
        self._datasets = sorted({config.dataset for config in trials} - {"digits"})  # that one comes with scikit-learn
        self._networks = to_be_built(trials)
        self._digests: dict[str, tuple[str, str]] = {}  # data set or network → (digest, the node that had it first)
        self._pending: dict[ray.ObjectRef, dict[str, Any]] = {}

    def check(self, nodes: Sequence[dict[str, Any]]) -> dict[str, str]:
        """Check all these nodes and wait for the answers.

        Returns:
            SHA-256 of each data set, which is the same on all of them.

        Raises:
            InvalidInputError: one of them cannot serve; the line names it.
        """
        here = ray.util.get_node_ip_address()
        if not (self._datasets or self._networks) and all(node["NodeManagerAddress"] == here for node in nodes):
            return {}  # the store is on this machine, or behind a URI that the driver has reached
        store, token = Store(self._job.store), f"visible-{uuid.uuid4().hex}"
        store.write_bytes(token, b"to be seen by every node")
        try:
            for node in nodes:
                self.start(node, token)
            began = said = time.monotonic()
            while self._pending:
                for node, problem in self.finished(wait=1.0):
                    if problem is not None:
                        raise InvalidInputError(f"node {node['NodeManagerAddress']}: {problem}")
                if self._pending and time.monotonic() - said >= _SAY_EVERY:
                    said = time.monotonic()
                    line = f"{len(self._pending)} of {len(nodes)} nodes still look at the store and the data"
                    complain(f"gcsr: {line}, for {said - began:.0f} s")
        finally:
            store.remove(token)
        return {name: self._digests[name][0] for name in self._datasets if name in self._digests}

    def start(self, node: dict[str, Any], token: str | None = None) -> None:
        """Begin to check a node; `finished` gives the answer.

        Args:
            node: as Ray describes it.
            token: name of a file that it must see in the store; None to look for the sweep itself.
        """
        if any(node["Resources"].get(kind, 0) < amount for kind, amount in self._needed.items()):
            return
        pinned = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(num_cpus=0, max_retries=1)(_look).options(scheduling_strategy=pinned)
        self._pending[task.remote(self._job, self._datasets, self._networks, token)] = node

    def finished(self, wait: float = 0.0) -> list[tuple[dict[str, Any], str | None]]:
        """The nodes whose check has ended since, and what is wrong with them; without those that died meanwhile."""
        if not self._pending:
            return []
        done, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=wait)
        found = []
        for reference in done:
            node = self._pending.pop(reference)
            try:
                report: NodeReport = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                report = NodeReport(one_line(error.cause if error.cause is not None else error))
            except ray.exceptions.RayError:
                continue
            found.append((node, report.problem or self._difference(node, report)))
        return found

    def _difference(self, node: dict[str, Any], report: NodeReport) -> str | None:
        for name, found in report.digests.items():
            expected, first = self._digests.setdefault(name, (found, node["NodeManagerAddress"]))
            if found != expected:
                field, its = ("model", f"the module of {name}") if is_own_network(name) else ("dataset", f"its {name}")
                has = f"has the sha256 {short_digest(found)}; expected {short_digest(expected)}, as node {first}"
                return f"{field}: {its} {has}"
        return None


def _look(job: SweepJob, datasets: Sequence[str], networks: Sequence[TrialConfig], token: str | None) -> NodeReport:
    """Runs on the node."""
    try:
        store = Store(job.store)
        seen = store.exists() if token is None else store.read_bytes(token) is not None
        if not seen:
            return NodeReport(
                f"out: {job.store!r} is not shared with this node; expected a URI, or a folder all nodes see"
            )
        digests = network_digests(networks)
        for name in sorted({*datasets, *(config.dataset for config in networks)}):
            arrays = local_arrays(job.data, name)
            check_networks([config for config in networks if config.dataset == name], arrays, job.workers)
            if name in datasets:
                digests[name] = digest(arrays)
        return NodeReport(digests=digests)
    except (InvalidInputError, OSError) as error:
        return NodeReport(one_line(error))
