"""The files that a network comes from."""

import hashlib
import sys
from types import ModuleType

import pytest

from gcsr.own_module import source_digest, sources
from tests.importing import loaded

FILES = {
    "nets_of_mine.py": "import torch, blocks_of_mine, nowhere\ndef net(num_classes): from package_of_mine.sub import a",
    "blocks_of_mine.py": "import gcsr",
    "never_of_mine.py": "",
    "package_of_mine/__init__.py": "",
    "package_of_mine/sub/__init__.py": "",
    "package_of_mine/sub/a.py": "from ..b import x",
    "package_of_mine/b.py": "import plain_of_mine.c\nx = 1",
    "package_of_mine/never.py": "",
    "plain_of_mine/c.py": "",
    "broken_of_mine.py": "def (",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if "_of_mine" in name]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("module", "files"),
    [
        (
            "nets_of_mine",
            "blocks_of_mine.py nets_of_mine.py package_of_mine/__init__.py package_of_mine/b.py "
            "package_of_mine/sub/__init__.py package_of_mine/sub/a.py",
        ),
        ("package_of_mine.b", "package_of_mine/__init__.py package_of_mine/b.py"),
        ("never_of_mine", "never_of_mine.py"),
        ("broken_of_mine", ""),
        ("plain_of_mine.c", ""),
        ("torch", ""),
    ],
)
def test_a_module_is_made_of_what_it_imports_from_its_folder(module, files, folder):
    assert sorted(str(file.relative_to(folder)) for file in sources(module, folder).values()) == files.split()


def digest(data):
    return hashlib.sha256(data).hexdigest()


def test_a_changed_module_has_another_digest_and_so_has_one_that_imports_it(folder):
    names = ("nets_of_mine:net", "package_of_mine.sub.a:net", "blocks_of_mine:net", "never_of_mine:net")
    before = [source_digest(name) for name in names]
    assert source_digest("nets_of_mine:other.net") == before[0]
    assert before[3] == digest(b"")
    assert before[1] == digest(
        "".join(
            f"{module} {digest(FILES[file].encode())}\n"
            for module, file in (
                ("package_of_mine", "package_of_mine/__init__.py"),
                ("package_of_mine.b", "package_of_mine/b.py"),
                ("package_of_mine.sub", "package_of_mine/sub/__init__.py"),
                ("package_of_mine.sub.a", "package_of_mine/sub/a.py"),
            )
        ).encode()
    )
    (folder / "package_of_mine" / "b.py").write_text("x = 2")
    assert [old != source_digest(name) for old, name in zip(before, names, strict=True)] == [True, True, False, False]
    (folder / "package_of_mine" / "never.py").write_text("x = 2")
    (folder / "blocks_of_mine.py").write_text("x = 2")
    assert [old != source_digest(name) for old, name in zip(before, names, strict=True)] == [True, True, True, False]
    assert source_digest("plain_of_mine.c:net") == digest(b"")


def test_of_an_installed_module_its_own_file_counts(tmp_path, monkeypatch):
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "nets_of_others.py").write_text("import blocks_of_others")
    (folder / "blocks_of_others.py").write_text("")
    monkeypatch.syspath_prepend(folder)
    assert source_digest("nets_of_others:net") == digest(b"import blocks_of_others")


def test_what_has_no_file_has_no_digest(monkeypatch):
    monkeypatch.setitem(sys.modules, "typed_in", ModuleType("typed_in"))  # as __main__ may be
    for without in ("nowhere:net", "nowhere.within:net", "sys:exit", "typed_in:net"):
        assert source_digest(without) is None


def test_nobody_waits_for_torch():
    assert "torch" not in loaded("import sys, gcsr.own_module; print(*sys.modules)")
