"""What a device can compute in, whatever torch was built with."""

import types

import torch

from gcsr.precision import is_emulated


def test_a_torch_without_onednn_emulates_bf16(monkeypatch):
    """As on macOS: the operation that would say whether is not there either."""
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    monkeypatch.setattr("torch.ops.mkldnn", types.SimpleNamespace())
    assert is_emulated("bf16", torch.device("cpu"))
    assert not is_emulated("fp32", torch.device("cpu"))
