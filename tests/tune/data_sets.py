"""Data sets of a few random pictures."""

import hashlib

import numpy as np


def write_data_set(folder, seed=0, name="cifar10"):
    """``NAME.npz`` and its checksum, as ``gcsr data`` writes them; returns the arrays."""
    random = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    arrays = {
        f"{split}_{kind}": random.integers(0, 10 if kind == "labels" else 256, shape, dtype=np.uint8)
        for split, n in (("train", 20), ("test", 10))
        for kind, shape in (("images", (n, 32, 32, 3)), ("labels", (n,)))
    }
    np.savez(folder / f"{name}.npz", **arrays)
    found = hashlib.sha256((folder / f"{name}.npz").read_bytes()).hexdigest()
    (folder / f"{name}.npz.sha256").write_text(f"{found}  {name}.npz\n")
    return arrays
