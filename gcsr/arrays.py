"""The arrays of data sets, from torchvision's files or one ``NAME.npz``: found, checked, cached. Imports no torch."""

import contextlib
import hashlib
import os
import zipfile
import zlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from gcsr.errors import ConfigError, DataError
from gcsr.files import cache_folder, write_atomically
from gcsr.names import DATASETS

__all__ = [
    "CLASSES",
    "LEVELS",
    "checksum_file",
    "data_root",
    "digest",
    "load_arrays",
    "prepare_arrays",
    "verify_arrays",
]

CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, "svhn": 10}
LEVELS = {"digits": 16, "cifar10": 255, "cifar100": 255, "svhn": 255}
"""The highest value that a pixel can have."""
_KEYS = ("train_images", "train_labels", "test_images", "test_labels")
_DIGITS_TRAIN = 1347  # of 1,797: three quarters

Arrays = Mapping[str, np.ndarray]


def data_root(given: str | os.PathLike[str] | None = None) -> Path:
    """Where data files are: ``given``, else ``GCSR_DATA``, else ``gcsr/`` in the user's cache folder."""
    if given is not None:
        return Path(given)
    if os.environ.get("GCSR_DATA"):
        return Path(os.environ["GCSR_DATA"])
    return cache_folder()


def load_arrays(name: str, root: str | os.PathLike[str] | None = None) -> Arrays:
    """The four arrays of a data set: images uint8 ``[N, H, W, C]``, labels uint8 ``[N]``.

    ``NAME.npz`` in the data root is read if it is there; else torchvision's files are, and the ``.npz`` is written
    beside them (if the folder can be written) so that the next trial loads one file.
    """
    if name not in DATASETS:
        raise ConfigError("dataset", name, "one of " + ", ".join(DATASETS))
    if name == "digits":
        return _digits()
    cache = data_root(root) / f"{name}.npz"
    if cache.exists():
        return _read_npz(name, cache)
    arrays = _from_torchvision(name, data_root(root), download=False)
    with contextlib.suppress(OSError):  # a read-only data folder only costs the next trial the same work
        _write_npz(cache, arrays)
    return arrays


def prepare_arrays(name: str, root: str | os.PathLike[str] | None = None, *, download: bool = False) -> Arrays:
    """As `load_arrays`, and with ``download`` fetch what is missing with torchvision's loaders first."""
    if download and name != "digits" and name in DATASETS and not (data_root(root) / f"{name}.npz").exists():
        folder = data_root(root)
        folder.mkdir(parents=True, exist_ok=True)
        _write_npz(folder / f"{name}.npz", _from_torchvision(name, folder, download=True))
    return load_arrays(name, root)


def _digits() -> Arrays:
    images, labels = _digits_table()
    # In a fixed order of our own: the file is sorted by writer.
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order][..., np.newaxis], labels[order]
    return {
        "train_images": images[:_DIGITS_TRAIN],
        "train_labels": labels[:_DIGITS_TRAIN],
        "test_images": images[_DIGITS_TRAIN:],
        "test_labels": labels[_DIGITS_TRAIN:],
    }


def _digits_table() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits as they are shipped: uint8 images ``[1797, 8, 8]`` and labels ``[1797]``.

    Its file is read without importing it, which would take longer than a trial trains.
    """
    found = find_spec("sklearn")
    for folder in (found and found.submodule_search_locations) or ():
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.exists():
            table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
            return table[:, :-1].reshape(-1, 8, 8), table[:, -1]
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images.astype(np.uint8), bunch.target.astype(np.uint8)


def _from_torchvision(name: str, root: Path, *, download: bool) -> Arrays:
    from torchvision.datasets import CIFAR10, CIFAR100, SVHN

    arrays: dict[str, np.ndarray] = {}
    try:
        for split in ("train", "test"):
            if name == "svhn":
                svhn = SVHN(str(root), split=split, download=download)
                images, labels = np.asarray(svhn.data).transpose(0, 2, 3, 1), np.asarray(svhn.labels)
            else:
                cifar = (CIFAR10 if name == "cifar10" else CIFAR100)(
                    str(root), train=split == "train", download=download
                )
                images, labels = np.asarray(cifar.data), np.asarray(cifar.targets)
            arrays[f"{split}_images"] = np.ascontiguousarray(images, dtype=np.uint8)
            arrays[f"{split}_labels"] = labels.astype(np.uint8)
    except Exception as error:  # torchvision raises many kinds for missing and damaged files
        if isinstance(error, RuntimeError) and "not found or corrupted" in str(error):
            raise DataError(
                f"dataset: {name} is not in {root}; put torchvision's files or {name}.npz there, name another folder "
                f"with --data or GCSR_DATA, or run: gcsr data {name} --download"
            ) from None
        raise DataError(f"dataset: {name} in {root} cannot be read: {' '.join(str(error).split())}") from None
    return _checked(name, root, arrays)


def _read_npz(name: str, path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in _KEYS if key not in file.files]
            if missing:
                raise DataError(f"dataset: {path} lacks {', '.join(missing)}; expected {', '.join(_KEYS)}")
            arrays = {key: file[key] for key in _KEYS}
    except DataError:
        raise
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"dataset: {path} is damaged or no .npz file: {' '.join(str(error).split())[:120]}") from None
    return _checked(name, path, arrays)


def _checked(name: str, path: Path, arrays: Arrays) -> Arrays:
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (32, 32, 3) or not len(images):
            found = f"{images.dtype} {list(images.shape)}"
            raise DataError(f"dataset: {path}: {split}_images is {found}; expected uint8 [N, 32, 32, 3]")
        if labels.dtype != np.uint8 or labels.shape != (len(images),):
            found = f"{labels.dtype} {list(labels.shape)}"
            raise DataError(f"dataset: {path}: {split}_labels is {found}; expected uint8 [{len(images)}]")
        if labels.max() >= CLASSES[name]:
            raise DataError(f"dataset: {path}: {split}_labels holds {labels.max()}; expected 0 to {CLASSES[name] - 1}")
    return arrays


def _write_npz(path: Path, arrays: Arrays) -> None:
    with write_atomically(path) as file:
        np.savez(file, allow_pickle=False, **arrays)
    with write_atomically(checksum_file(path)) as file:
        file.write(f"{_sha256(path)}  {path.name}\n".encode())


def verify_arrays(name: str, root: str | os.PathLike[str] | None = None) -> str | None:
    """Compare ``NAME.npz`` with the checksum that was written beside it (in the form of ``sha256sum``).

    Returns:
        The checksum of the file; None for digits, which has none.

    Raises:
        DataError: the file is not the one that was written, or one of the two cannot be read.
    """
    if name == "digits":
        return None
    path = data_root(root) / f"{name}.npz"
    try:
        found = _sha256(path)
        noted = checksum_file(path)
        if not noted.exists():  # an .npz that somebody brought: from now on it can be told from a damaged one
            with write_atomically(noted) as file:
                file.write(f"{found}  {path.name}\n".encode())
        expected = noted.read_text().split()[:1]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"dataset: {path} cannot be checked: {getattr(error, 'strerror', None) or error}") from None
    if expected != [found]:
        raise DataError(f"dataset: {path} has the sha256 {found}; expected {' '.join(expected)}, as {noted.name} says")
    return found


def digest(arrays: Arrays) -> str:
    """SHA-256 of a data set's content, whatever file it came from."""
    found = hashlib.sha256()
    for key in _KEYS:
        found.update(f"{key} {arrays[key].dtype} {arrays[key].shape}".encode())
        found.update(np.ascontiguousarray(arrays[key]).data)
    return found.hexdigest()


def checksum_file(path: Path) -> Path:
    """Where the checksum of an ``.npz`` stands, in the form of ``sha256sum``."""
    return path.with_name(f"{path.name}.sha256")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
