"""The arrays of data sets, from torchvision's files or one ``NAME.npz``: found, checked, cached. Imports no torch."""

import contextlib
import hashlib
import io
import os
import re
import shlex
import stat
import warnings
import zipfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from gcsr.errors import ConfigError, DataError, shortened
from gcsr.files import cache_folder, write_atomically
from gcsr.names import DATASETS, check_dataset_name, is_own_dataset

__all__ = [
    "Arrays",
    "array_file",
    "checksum_file",
    "data_root",
    "digest",
    "held_out",
    "levels",
    "load_arrays",
    "number_of_classes",
    "prepare_arrays",
    "verify_arrays",
]

_CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, "svhn": 10}
_KEYS = ("train_images", "train_labels", "test_images", "test_labels")
_DIGITS_TRAIN = 1347  # of 1,797: three quarters
_LONGEST_HEADER = 10_000  # bytes; as numpy, which has read it by the time it looks
_MOST_IMAGES = 1_000_000  # SVHN's 531,131 further ones are the most that any of them has
_MOST_CLASSES = 100_000
_MOST_COLOURS = 4  # so many come first, and larger numbers follow, where channels do, as torch has them

Arrays = Mapping[str, np.ndarray]
_Kind = tuple[tuple[int, ...], np.dtype[Any]]  # shape and dtype


def data_root(given: str | os.PathLike[str] | None = None) -> Path:
    """Where data files are: ``given``, else ``GCSR_DATA``, else ``gcsr/`` in the user's cache folder.

    Raises:
        DataError: it is none of them, as the user has no home folder.
    """
    if given is not None:
        return Path(given)
    if os.environ.get("GCSR_DATA"):
        return Path(os.environ["GCSR_DATA"])
    return cache_folder()


def array_file(name: str) -> str:
    """The file of a data set in a data root: ``NAME.npz``, after which a user's own is named."""
    return name if is_own_dataset(name) else f"{name}.npz"


def number_of_classes(name: str, arrays: Arrays) -> int:
    """How many classes a data set has: one's own as many as its labels, from 0 on, name."""
    if name in _CLASSES:
        return _CLASSES[name]
    return 1 + max(int(arrays[key].max()) for key in _KEYS if key.endswith("labels"))


def levels(name: str) -> int:
    """The highest value that a pixel of a data set can have."""
    return 16 if name == "digits" else 255


def load_arrays(name: str, root: str | os.PathLike[str] | None = None) -> Arrays:
    """The four arrays of a data set: images uint8 ``[N, H, W, C]``, labels ``[N]``: uint8, one's own of any integers.

    ``NAME.npz`` in the data root is read if it is there; else torchvision's files are, and the ``.npz`` is written
    beside them (if the folder can be written) so that the next trial loads one file.

    Raises:
        ConfigError: no data set is named so.
        DataError: the files are missing or damaged; the message says how to get them.
    """
    check_dataset_name(name)
    if name == "digits":
        return _digits()
    cache = data_root(root) / array_file(name)
    if _is_there(cache):
        return _read_npz(name, cache)
    if is_own_dataset(name):
        raise DataError(f"dataset: {name} is not in {cache.parent}; name its folder with --data or GCSR_DATA")
    arrays = _from_torchvision(name, data_root(root), download=False)
    with contextlib.suppress(OSError):  # a read-only data folder only costs the next trial the same work
        _write_npz(cache, arrays)
    return arrays


def prepare_arrays(name: str, root: str | os.PathLike[str] | None = None, *, download: bool = False) -> Arrays:
    """As `load_arrays`, but the ``.npz`` must be there afterwards.

    Args:
        name: of the data set.
        root: see `data_root`.
        download: let torchvision's loaders fetch what is missing.

    Raises:
        ConfigError: no data set is named so.
        DataError: the files are missing or damaged, or cannot be downloaded.
    """
    if name == "digits" or name not in DATASETS:
        return load_arrays(name, root)
    folder = data_root(root)
    cache = folder / array_file(name)
    if _is_there(cache):
        return load_arrays(name, root)
    try:
        if download:
            folder.mkdir(parents=True, exist_ok=True)
        arrays = _from_torchvision(name, folder, download=download)
        _write_npz(cache, arrays)
    except OSError as error:
        raise DataError(f"data: {str(folder)!r} cannot be written: {error.strerror}") from None
    return arrays


def held_out(images: int, share: float) -> int:
    """How many of so many training images are held out for validation.

    Raises:
        ConfigError: none would be left to train on.
    """
    count = max(1, round(images * share)) if share > 0 else 0
    if count >= images:
        raise ConfigError("holdout", share, f"a share that leaves some of the {images} images to train on")
    return count


def _is_there(path: Path) -> bool:
    """Whether there is something to be read; a link that leads nowhere is damage, not absence."""
    try:
        path.lstat()
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"dataset: {path} cannot be read: it is no regular file")
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            raise DataError(f"dataset: {path} cannot be read: {error.strerror}: {os.readlink(path)}") from None
        return False
    except OSError as error:
        raise DataError(f"dataset: {path} cannot be read: {error.strerror}") from None
    return True


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
        if isinstance(error, RuntimeError) and "not found or corrupted" in str(error) and not download:
            default: Path | None = None
            with contextlib.suppress(DataError):
                default = data_root()
            where = "" if root == default else f" --data {shlex.quote(str(root))}"
            raise DataError(
                f"dataset: {name} is not in {root}; put torchvision's files or {name}.npz there, name another folder "
                f"with --data or GCSR_DATA, or run: gcsr data {name} --download{where}"
            ) from None
        if download:  # a file that is there already has passed its checksum
            raise DataError(f"dataset: {name} cannot be downloaded into {root}: {_reason(error)}") from None
        raise DataError(f"dataset: {name} in {root} cannot be read: {' '.join(str(error).split())}") from None
    return _checked(name, root, arrays)


def _reason(error: Exception) -> str:
    """Why a download failed: urllib puts what the network said inside an error of its own."""
    cause = getattr(error, "reason", None)
    cause = cause if isinstance(cause, OSError) else error
    return " ".join(str(getattr(cause, "strerror", None) or cause).split())


def _read_npz(name: str, path: Path) -> Arrays:
    try:
        with zipfile.ZipFile(path) as file, warnings.catch_warnings(action="ignore"):  # numpy's, of Python 2's headers
            members = set(file.namelist())
            missing = [key for key in _KEYS if f"{key}.npy" not in members]
            if missing:
                raise DataError(f"dataset: {path} lacks {', '.join(missing)}; expected {', '.join(_KEYS)}")
            # What a file says of itself is looked at before there is memory for it.
            _check_kinds(name, path, {key: _declared(file, key) for key in _KEYS})
            arrays = {key: _read_member(file, key) for key in _KEYS}
    except DataError:
        raise
    except Exception as error:  # zipfile and numpy raise a different class for every kind of damage
        if isinstance(error, OSError) and error.strerror is not None:
            raise DataError(f"dataset: {path} cannot be read: {error.strerror}") from None
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"dataset: {path} is damaged or no .npz file: {reason}") from None
    _check_labels(name, path, arrays)
    return arrays


def _declared(file: zipfile.ZipFile, key: str) -> _Kind:
    """What the header of an array says; numpy's own reader would make the array first."""
    with file.open(f"{key}.npy") as member:
        version = np.lib.format.read_magic(member)
        size = member.read(2 if version == (1, 0) else 4)
        if (length := int.from_bytes(size, "little")) > _LONGEST_HEADER:
            raise ValueError(f"{key} has a header of {length} bytes")
        header = io.BytesIO(size + member.read(length))
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(header)
    return shape, dtype


def _read_member(file: zipfile.ZipFile, key: str) -> np.ndarray:
    with file.open(f"{key}.npy") as member:
        array: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):  # which also has zipfile compare the checksum
            raise ValueError(f"{key} is longer than it says")
    return array


def _checked(name: str, path: Path, arrays: Arrays) -> Arrays:
    _check_kinds(name, path, {key: (array.shape, array.dtype) for key, array in arrays.items()})
    _check_labels(name, path, arrays)
    return arrays


def _check_kinds(name: str, path: Path, kinds: Mapping[str, _Kind]) -> None:
    own = is_own_dataset(name)
    pictures = kinds["train_images"][0][1:] if own else (32, 32, 3)
    if own and (len(pictures) != 3 or 0 in pictures or pictures[0] <= _MOST_COLOURS < min(pictures[1:])):
        found = _described(kinds["train_images"][1], kinds["train_images"][0])
        raise DataError(f"dataset: {path}: train_images is {found}; expected uint8 [N, height, width, channels]")
    for split in ("train", "test"):
        (shape, dtype), (labels_shape, labels_dtype) = kinds[f"{split}_images"], kinds[f"{split}_labels"]
        if dtype != np.uint8 or shape[1:] != pictures or not 1 <= shape[0] <= _MOST_IMAGES:
            expected = f"uint8 [N, {', '.join(map(str, pictures))}], N from 1 to {_MOST_IMAGES}"
            raise DataError(f"dataset: {path}: {split}_images is {_described(dtype, shape)}; expected {expected}")
        fits = labels_dtype.kind in "iu" if own else labels_dtype == np.uint8
        if not fits or labels_shape != shape[:1]:
            found, kind = _described(labels_dtype, labels_shape), "integers" if own else "uint8"
            raise DataError(f"dataset: {path}: {split}_labels is {found}; expected {kind} [{shape[0]}]")


def _described(dtype: np.dtype[Any], shape: tuple[int, ...]) -> str:
    return shortened(f"{dtype} {list(shape)}")


def _check_labels(name: str, path: Path, arrays: Arrays) -> None:
    classes = _CLASSES.get(name, _MOST_CLASSES)
    for split in ("train", "test"):
        for label in (arrays[f"{split}_labels"].min(), arrays[f"{split}_labels"].max()):
            if not 0 <= label < classes:
                raise DataError(f"dataset: {path}: {split}_labels holds {label}; expected 0 to {classes - 1}")


def _write_npz(path: Path, arrays: Arrays) -> None:
    with write_atomically(path) as file:
        np.savez(file, allow_pickle=False, **arrays)
    with write_atomically(checksum_file(path)) as file:
        file.write(f"{_sha256(path)}  {path.name}\n".encode())


def verify_arrays(name: str, root: str | os.PathLike[str] | None = None) -> str | None:
    """Compare ``NAME.npz`` with the checksum that was written beside it (in the form of ``sha256sum``).

    If there is none, it is written: from now on a damaged file can be told.

    Returns:
        The checksum of the file; None for digits, which has none.

    Raises:
        DataError: the file is not the one that was written, or one of the two cannot be read.
    """
    if name == "digits":
        return None
    path = data_root(root) / array_file(name)
    noted = checksum_file(path)
    try:
        found = _sha256(path)
        if not _is_there(noted):  # an .npz that somebody brought: from now on it can be told from a damaged one
            with contextlib.suppress(OSError), write_atomically(noted) as file:
                file.write(f"{found}  {path.name}\n".encode())
            return found
        expected = "".join(noted.read_text(encoding="utf-8", errors="replace").split()[:1]).lower()
    except OSError as error:
        raise DataError(f"dataset: {error.filename or path} cannot be read: {error.strerror or error}") from None
    if not re.fullmatch("[0-9a-f]{64}", expected):
        raise DataError(f"dataset: {noted} holds no SHA-256; delete it to have it written anew")
    if expected != found:
        raise DataError(f"dataset: {path} has the sha256 {found}; expected {expected}, as {noted.name} says")
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
