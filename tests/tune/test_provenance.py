"""Where a run was made, on machines that say little of themselves."""

from pathlib import Path

import pytest

from tune.provenance import provenance


@pytest.mark.parametrize("cpuinfo", ["processor\t: 0\nFeatures\t: fp asimd sve2\nCPU part\t: 0xd4f\n", None])
def test_a_processor_without_a_name_is_named_by_its_kind(cpuinfo, monkeypatch):
    """As Graviton and Grace, whose kernels say no name; and where there is no /proc."""

    def read_text(self, **_):
        if cpuinfo is None:
            raise FileNotFoundError(self)
        return cpuinfo

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert provenance()["processor"] == "aarch64"
