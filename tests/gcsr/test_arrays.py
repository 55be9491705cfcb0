"""Arrays: torchvision's own files, the array cache, and everything that can be wrong with them."""

import hashlib
import io
import os
import pickle
import socket
import urllib.error
import zipfile
from email.message import Message
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets as tv
from scipy.io import savemat

from gcsr import ConfigError, DataError, load_dataset
from gcsr.arrays import checksum_file, held_out, load_arrays, number_of_classes, prepare_arrays, verify_arrays


def arrays(classes=10, train=20, test=10):
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (train, 32, 32, 3), dtype=np.uint8),
        "train_labels": (np.arange(train) % classes).astype(np.uint8),
        "test_images": rng.integers(0, 256, (test, 32, 32, 3), dtype=np.uint8),
        "test_labels": (np.arange(test) % classes).astype(np.uint8),
    }


def write_cifar(root, name, data, monkeypatch):
    """The archive's extracted files, as the data sets' author wrote them; their checksums become the expected ones."""
    kind = tv.CIFAR10 if name == "cifar10" else tv.CIFAR100
    folder = root / kind.base_folder
    folder.mkdir()
    key = "labels" if name == "cifar10" else "fine_labels"

    def write(file, content):
        (folder / file).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / file).read_bytes()).hexdigest()

    def batch(images, labels):
        return {"data": images.transpose(0, 3, 1, 2).reshape(len(images), -1), key: labels.tolist()}

    parts = np.array_split(np.arange(len(data["train_images"])), len(kind.train_list))
    train = [
        [file, write(file, batch(data["train_images"][part], data["train_labels"][part]))]
        for (file, _), part in zip(kind.train_list, parts, strict=True)
    ]
    test_file = kind.test_list[0][0]
    test = [[test_file, write(test_file, batch(data["test_images"], data["test_labels"]))]]
    names = {kind.meta["key"]: [str(i) for i in range(100)]}
    meta = kind.meta | {"md5": write(kind.meta["filename"], names)}
    for attribute, value in (("train_list", train), ("test_list", test), ("meta", meta)):
        monkeypatch.setattr(kind, attribute, value)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_from_torchvisions_files_once(name, tmp_path, monkeypatch):
    written = arrays(classes=100 if name == "cifar100" else 10)
    write_cifar(tmp_path, name, written, monkeypatch)
    loaded = load_arrays(name, tmp_path)
    assert all(np.array_equal(loaded[key], written[key]) for key in written)
    monkeypatch.setattr("gcsr.arrays._from_torchvision", lambda *a, **k: pytest.fail("the cache was not used"))
    cached = load_arrays(name, tmp_path)
    assert all(np.array_equal(cached[key], written[key]) for key in written)
    assert load_dataset(name, root=tmp_path).train_images.shape == (20, 3, 32, 32)


def test_svhn_is_read_from_torchvisions_files(tmp_path, monkeypatch):
    written = arrays()
    splits = {}
    for split in ("train", "test"):
        url, file, _ = tv.SVHN.split_list[split]
        labels = np.where(written[f"{split}_labels"] == 0, 10, written[f"{split}_labels"])  # the file's "10" is a 0
        savemat(tmp_path / file, {"X": written[f"{split}_images"].transpose(1, 2, 3, 0), "y": labels[:, None]})
        splits[split] = [url, file, hashlib.md5((tmp_path / file).read_bytes()).hexdigest()]
    monkeypatch.setattr(tv.SVHN, "split_list", splits)
    loaded = load_arrays("svhn", tmp_path)
    assert all(np.array_equal(loaded[key], written[key]) for key in written)


def test_missing_files_are_one_line_that_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"--data or GCSR_DATA, or run: gcsr data svhn --download") as caught:
        load_arrays("svhn", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (urllib.error.URLError(socket.gaierror(-2, "Name or service not known")), "Name or service not known"),
        (urllib.error.HTTPError("http://host", 404, "Not Found", Message(), None), "HTTP Error 404: Not Found"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_a_download_that_fails_says_so_and_why(failure, reason, tmp_path, monkeypatch):
    def urlopen(*arguments, **options):
        raise failure

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    with pytest.raises(DataError) as caught:
        prepare_arrays("svhn", tmp_path, download=True)
    assert str(caught.value) == f"dataset: svhn cannot be downloaded into {tmp_path}: {reason}"


def test_a_download_of_something_else_says_so(tmp_path, monkeypatch):
    def retrieve(url, path, *arguments, **options):
        Path(path).write_text("<html>Please log in</html>")

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, *arguments, **options: url)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", retrieve)
    with pytest.raises(DataError, match=r"svhn cannot be downloaded into .*: File not found or corrupted"):
        prepare_arrays("svhn", tmp_path, download=True)


def damaged(case):
    data = arrays()
    match case:
        case "missing key":
            del data["test_labels"]
        case "float images":
            data["train_images"] = data["train_images"].astype(np.float32)
        case "channels first":
            data["train_images"] = data["train_images"].transpose(0, 3, 1, 2)
        case "too few labels":
            data["train_labels"] = data["train_labels"][:-1]
        case "wide labels":
            data["test_labels"] = data["test_labels"].astype(np.int64)
        case "label out of range":
            data["test_labels"][3] = 10
        case "no images":
            data["test_images"], data["test_labels"] = data["test_images"][:0], data["test_labels"][:0]
        case "pickled objects":
            data["train_labels"] = np.array([object()] * 20, dtype=object)
    return data


CASES = ["missing key", "float images", "channels first", "too few labels", "wide labels", "label out of range"]


@pytest.mark.parametrize("case", [*CASES, "no images", "pickled objects"])
def test_wrong_arrays_are_one_clear_line(case, tmp_path):
    np.savez(tmp_path / "cifar10.npz", **damaged(case))
    with pytest.raises(DataError, match=r"cifar10\.npz") as caught:
        load_arrays("cifar10", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 10, 1000, -30])
def test_truncated_files_are_one_clear_line(keep, tmp_path):
    path = tmp_path / "cifar10.npz"
    np.savez(path, **arrays())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="damaged"):
        load_arrays("cifar10", tmp_path)


def test_damage_inside_of_a_compressed_file_is_one_clear_line(tmp_path):
    path = tmp_path / "cifar10.npz"
    np.savez_compressed(path, **arrays())
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged") as caught:
        load_arrays("cifar10", tmp_path)
    assert "\n" not in str(caught.value)


def member(content):
    """A file whose training images are these bytes."""

    def write(path):
        np.savez(path, **arrays())
        with zipfile.ZipFile(path) as file:
            members = {name: file.read(name) for name in file.namelist()}
        with zipfile.ZipFile(path, "w") as file:
            for name, data in members.items():
                file.writestr(name, content if name == "train_images.npy" else data)

    return write


def header(shape):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue() + b"abc"


def plain_array(path):
    with open(path, "wb") as file:
        np.save(file, arrays()["train_images"])


DAMAGE = {
    "a plain array": (plain_array, "damaged"),
    "no array inside": (member(b"not an array"), "damaged"),
    "an empty member": (member(b""), "damaged"),
    "fewer bytes than declared": (member(header((20, 32, 32, 3))), "damaged"),
    "more than memory": (member(header((10**12, 32, 32, 3))), r"train_images is uint8 \[1000000000000, 32, 32, 3\]"),
    "beyond 64 bits": (member(header((10**26, 32, 32, 3))), "expected uint8"),
    "a header of brackets": (member(b"\x93NUMPY\x01\x00\x08\x00((((((((abc"), "damaged"),
    "a header without end": (member(b"\x93NUMPY\x02\x00\x00\x00\x00\x20abc"), "a header of 536870912 bytes"),
    "a shape without end": (member(header((1,) * 2000)), r"\[1, 1, .*\.\.\.; expected uint8"),
    "a folder": (lambda path: path.mkdir(), "no regular file"),
    "a pipe": (os.mkfifo, "no regular file"),
    "a link to nowhere": (lambda path: path.symlink_to("nowhere"), "nowhere"),
    "a link to itself": (lambda path: path.symlink_to(path), "Too many levels"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_is_no_set_of_arrays_is_one_clear_line(case, tmp_path):
    damage, words = DAMAGE[case]
    damage(tmp_path / "cifar10.npz")
    with pytest.raises(DataError, match=words) as caught:
        load_arrays("cifar10", tmp_path)
    assert str(caught.value).startswith("dataset: ")
    assert "\n" not in str(caught.value)


def test_a_share_that_leaves_nothing_to_train_on_is_refused():
    assert [held_out(10, share) for share in (0, 1e-9, 0.3, 0.9)] == [0, 1, 3, 9]
    for images, share in ((1, 0.1), (3, 0.9)):
        with pytest.raises(ConfigError, match="holdout"):
            held_out(images, share)


def test_a_file_of_checksums_that_holds_none_is_named(tmp_path):
    path = tmp_path / "cifar10.npz"
    np.savez(path, **arrays())
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    for text in ("", "x" * 5000, "\n"):
        checksum_file(path).write_text(text)
        with pytest.raises(DataError, match=r"sha256 holds no SHA-256; delete it") as caught:
            verify_arrays("cifar10", tmp_path)
        assert len(str(caught.value)) < 300
    checksum_file(path).write_text(expected.upper())
    assert verify_arrays("cifar10", tmp_path) == expected


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_of_checksums_is_named(make, tmp_path):
    np.savez(tmp_path / "cifar10.npz", **arrays())
    make(tmp_path / "cifar10.npz.sha256")
    with pytest.raises(DataError, match=r"cifar10\.npz\.sha256 cannot be read: it is no regular file"):
        verify_arrays("cifar10", tmp_path)


def test_headers_of_python_2_are_read_without_a_word(tmp_path, recwarn):
    path = tmp_path / "cifar10.npz"
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (20L, 32L, 32L, 3L), }"
    text += b" " * (-(10 + len(text) + 1) % 64) + b"\n"
    images = arrays()["train_images"].tobytes()
    member(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + images)(path)
    assert load_arrays("cifar10", tmp_path)["train_images"].tobytes() == images
    assert not recwarn.list


def test_preparing_says_if_it_could_not_write(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gcsr.arrays._from_torchvision", lambda *_, **__: arrays())
    monkeypatch.setattr("gcsr.arrays._write_npz", full)
    assert load_arrays("cifar10", tmp_path)["train_labels"].shape == (20,), "a trial needs no file"
    with pytest.raises(DataError, match=r"cannot be written: No space left on device"):
        prepare_arrays("cifar10", tmp_path)


def test_unknown_data_sets_are_refused():
    with pytest.raises(ConfigError, match="dataset"):
        load_arrays("imagenet")


def own_arrays(**changed):
    random = np.random.default_rng(0)
    found = {
        "train_images": random.integers(0, 256, (9, 6, 5, 2), dtype=np.uint8), "train_labels": np.arange(9),
        "test_images": random.integers(0, 256, (4, 6, 5, 2), dtype=np.uint8), "test_labels": np.array([3, 11, 0, 1]),
    }  # fmt: skip
    return found | changed


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint64])
def test_data_of_ones_own_have_any_size_and_the_classes_that_their_labels_name(dtype, tmp_path):
    written = own_arrays(**{key: own_arrays()[key].astype(dtype) for key in ("train_labels", "test_labels")})
    np.savez(tmp_path / "birds.npz", **written)
    loaded = load_arrays("birds.npz", tmp_path)
    assert all(np.array_equal(loaded[key], written[key]) for key in written)
    assert number_of_classes("birds.npz", loaded) == 12
    data = load_dataset("birds.npz", root=tmp_path, inputs="unit")
    assert (data.name, data.classes, data.input_shape) == ("birds.npz", 12, (2, 6, 5))
    assert np.allclose(data.normalized(data.test_images).numpy().transpose(0, 2, 3, 1), written["test_images"] / 255)
    assert data.test_labels.tolist() == [3, 11, 0, 1]
    assert verify_arrays("birds.npz", tmp_path) == hashlib.sha256((tmp_path / "birds.npz").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"train_images": np.zeros((9, 6, 5), np.uint8)},
            r"train_images is uint8 \[9, 6, 5\]; expected uint8 \[N, height",
        ),
        ({"test_images": np.zeros((4, 6, 6, 2), np.uint8)}, r"test_images is .*; expected uint8 \[N, 6, 5, 2\]"),
        ({"test_images": np.zeros((4, 6, 5, 2))}, r"test_images is float64 \[4, 6, 5, 2\]"),
        ({"train_images": np.zeros((9, 0, 5, 2), np.uint8)}, "train_images"),
        (
            {"train_images": np.zeros((9, 3, 32, 32), np.uint8)},
            r"train_images is uint8 \[9, 3, 32, 32\]; expected uint8 \[N, height, width, channels\]",
        ),
        ({"test_labels": np.array([0, 1, 2])}, r"test_labels is int64 \[3\]; expected integers \[4\]"),
        ({"test_labels": np.zeros(4)}, "test_labels is float64"),
        ({"train_labels": np.arange(9) - 1}, "train_labels holds -1; expected 0 to 99999"),
        ({"test_labels": np.array([0, 1, 2, 10**6])}, "test_labels holds 1000000"),
    ],
)
def test_wrong_data_of_ones_own_are_one_clear_line(changed, words, tmp_path):
    np.savez(tmp_path / "birds.npz", **own_arrays(**changed))
    with pytest.raises(DataError, match=words):
        load_arrays("birds.npz", tmp_path)


def test_data_of_ones_own_that_are_not_there_are_not_looked_for_elsewhere(tmp_path):
    for find in (load_arrays, prepare_arrays):
        with pytest.raises(DataError, match=r"birds\.npz is not in .*--data or GCSR_DATA"):
            find("birds.npz", tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_checksum_tells_a_changed_file_from_the_one_that_was_written(tmp_path):
    path = tmp_path / "cifar10.npz"
    np.savez(path, **arrays())
    first = verify_arrays("cifar10", tmp_path)  # a file that somebody brought: noted now
    assert (tmp_path / "cifar10.npz.sha256").read_text() == f"{first}  cifar10.npz\n"
    assert verify_arrays("cifar10", tmp_path) == first == hashlib.sha256(path.read_bytes()).hexdigest()
    np.savez(path, **arrays(train=21))
    with pytest.raises(DataError, match=r"cifar10.npz has the sha256 [0-9a-f]{64}; expected " + first):
        verify_arrays("cifar10", tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"cifar10\.npz cannot be read: No such file"):
        verify_arrays("cifar10", tmp_path)
    assert verify_arrays("digits") is None


def test_a_user_without_a_home_folder_has_to_name_one(monkeypatch, tmp_path):
    """As in a container that knows no user of its number."""
    for name in ("HOME", "XDG_CACHE_HOME", "GCSR_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # what it gives where there is none
    with pytest.raises(DataError, match="no home folder; name a folder with --data or GCSR_DATA"):
        load_arrays("cifar10")
    assert len(prepare_arrays("digits")["train_images"]) == 1347
    with pytest.raises(DataError, match="is not in"):
        load_arrays("cifar10", tmp_path)
