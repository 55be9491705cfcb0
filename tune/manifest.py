"""What is noted of a store: its spec, its planned trials, on what data and networks they are trained, and by what."""

from collections.abc import Mapping, Sequence
from typing import Any

from gcsr import InvalidInputError, TrialConfig
from tune.job import SweepJob
from tune.networks import network_digests
from tune.node_data import local_digest
from tune.provenance import provenance
from tune.spec import SweepSpec
from tune.store import Store
from tune.terminal import complain
from tune.words import short_digest

__all__ = ["check_data", "joined", "note_run"]

_NOTED_RUNS = 50  # the last ones


def note_run(
    store: Store,
    spec: SweepSpec,
    job: SweepJob,
    trained: Sequence[TrialConfig] = (),
    *,
    trials: Sequence[str] = (),
    planned: int | None = None,
) -> None:
    """Note in the store which spec is run into it, on what data, by what and when; what earlier runs noted stays.

    Say so if a module that builds a network was changed since: what it builds may be another, or the same.

    Args:
        store: the store.
        spec: the spec.
        job: of the run, as its executor has it.
        trained: some trials that use every data set and network of the run.
        trials: ids of planned trials, added to those that are noted.
        planned: how many trials there will be, where their ids are not known yet.
    """
    noted = store.read_manifest() or {}
    networks = noted.get("networks", {})
    for name, found in network_digests(trained).items():
        known = networks.setdefault(name, [found])
        if found != known[-1]:
            known.append(found)
            complain(
                f"gcsr: model: the module of {name} was changed since trials in {store.location} were trained: if it "
                "builds another network, give a new --out"
            )
    new: dict[str, Any] = {
        "experiment": spec.experiment,
        "spec": spec.model_dump(mode="json"),
        "runs": [*noted.get("runs", []), provenance()][-_NOTED_RUNS:],
        "trials": sorted({*noted.get("trials", []), *trials}),
        "data": noted.get("data", {}) | _digests(trained, job),
    }
    if networks:
        new["networks"] = networks
    if planned is not None:
        new["planned"] = planned
    store.write_manifest(noted | new)


def joined(manifests: Sequence[tuple[Store, Mapping[str, Any]]]) -> dict[str, Any]:
    """What is noted of a store with the trials of all of these: that of the last run says what it is.

    Raises:
        InvalidInputError: they were trained on different data: no mean may be over both.
    """
    data: dict[str, tuple[str, Store]] = {}
    networks: dict[str, list[str]] = {}
    for store, manifest in manifests:
        for name, digest in manifest.get("data", {}).items():
            known, of = data.setdefault(name, (digest, store))
            if digest != known:
                raise InvalidInputError(
                    f"data: {name} with the sha256 {short_digest(digest)}, which trials in {store.location} were "
                    f"trained on, is not allowed; expected {short_digest(known)}, as in {of.location}"
                )
        for name, digests in manifest.get("networks", {}).items():
            versions = networks.setdefault(name, [])
            versions += [digest for digest in digests if digest not in versions]
    noted: list[Mapping[str, Any]] = [manifest for _, manifest in manifests if manifest]
    runs: list[dict[str, Any]] = []
    for run in sorted((run for manifest in noted for run in manifest.get("runs", [])), key=_started):
        if run not in runs:  # else merged before
            runs.append(run)
    last = max(noted, key=_last_started) if noted else {}
    found = {
        **last,
        "runs": runs[-_NOTED_RUNS:],
        "trials": sorted({name for manifest in noted for name in manifest.get("trials", [])}),
        "data": {name: digest for name, (digest, _) in data.items()},
    }
    return found | ({"networks": networks} if networks else {})


def _last_started(manifest: Mapping[str, Any]) -> str:
    return max(map(_started, manifest.get("runs", [])), default="")


def _started(run: Mapping[str, Any]) -> str:
    return str(run.get("started", ""))


def check_data(store: Store, job: SweepJob, trials: Sequence[TrialConfig]) -> None:
    """Raise if trials of the store were trained on other data: no mean may be over both.

    Args:
        store: of the run.
        job: of the run, with what a cluster's nodes agreed on; without, this machine's data counts.
        trials: some that use every data set of the run.

    Raises:
        InvalidInputError: they were.
    """
    digests = _digests(trials, job)
    before = (store.read_manifest() or {}).get("data", {})
    for name in sorted(before.keys() & digests.keys()):
        if before[name] != digests[name]:
            expected, found = short_digest(before[name]), short_digest(digests[name])
            raise InvalidInputError(
                f"data: {name} with the sha256 {found} is not allowed; expected {expected}, which the trials in "
                f"{store.location} were trained on"
            )


def _digests(trials: Sequence[TrialConfig], job: SweepJob) -> dict[str, str]:
    """SHA-256 of the content of each data set that the trials use, as a cluster's nodes agreed on it or as it is here.

    Raises:
        InvalidInputError: one is not there, or damaged.
    """
    names = {config.dataset for config in trials} - {"digits"}
    return {name: job.digests.get(name) or local_digest(job.data, name) for name in sorted(names)}
