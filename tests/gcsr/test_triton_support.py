"""Where kernels in Triton are used: it compiles on the way, so not everywhere where it is installed."""

import sysconfig

import pytest
import torch

from gcsr import triton_support


@pytest.mark.parametrize("headers", [True, False])
def test_without_pythons_headers_triton_is_not_used(headers, monkeypatch, tmp_path):
    if headers:
        (tmp_path / "Python.h").touch()
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(triton_support, "find_spec", lambda name: object())
    monkeypatch.setattr(sysconfig, "get_path", lambda name, scheme: str(tmp_path))
    assert triton_support._installed.__wrapped__() is headers
