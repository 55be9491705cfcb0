"""The same trial twice: results without what may differ, and data on another device."""

import dataclasses

import torch

__all__ = ["measured", "moved"]


def measured(result):
    """Everything but wall time."""
    plain = dataclasses.asdict(result)
    plain.pop("seconds")
    plain["epochs"] = [{k: v for k, v in record.items() if k != "seconds"} for record in plain["epochs"]]
    return plain


def moved(data, device):
    """The data on another device."""
    fields = {f.name: getattr(data, f.name) for f in dataclasses.fields(data)}
    return dataclasses.replace(data, **{k: v.to(device) for k, v in fields.items() if isinstance(v, torch.Tensor)})
