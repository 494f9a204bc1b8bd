"""Code of the user's own: named, found without being run, executed, blamed by file and line."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from pathlib import Path
from typing import Any

import pytest
from pictures import message
from torch import nn

from biograd import user_code
from biograd.configuration import OwnParts
from biograd.errors import RecipeError
from biograd.user_code import UserCode

NET = """
from torch import nn

import helper


class Net(nn.Module):
    def __init__(self, width, depth=1, *, scale=1.0):
        super().__init__()
        self.layer = nn.Linear(4, width)


def make(**sizes):
    return Net(**sizes)


made = Net(2)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "helper.py").write_text("import deeper\n")
    (tmp_path / "deeper.py").write_text("VALUE = 1\n")
    (tmp_path / "unused.py").write_text("raise RuntimeError\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path  # type: ignore[misc]
    for name in ("helper", "deeper", *[name for name in sys.modules if name[:3] == "lab"]):
        sys.modules.pop(name, None)


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "text, named",
    [
        ("net.py:Net", True),
        ("/a b/net.py:Net", True),
        ("package.module:Net", True),
        ("net:Net", True),
        ("net.py", True),
        ("spiking", False),
        ("net.toml", False),
        ("net.py:", False),
        ("net.py:a-b", False),
        ("pa ckage:Net", False),
        ("net.py:Net\nx", False),
    ],
)
def test_what_names_code(text: str, named: bool) -> None:
    assert user_code.is_named(text) is named


def test_finding_runs_nothing_and_knows_what_is_imported_beside(place: Path) -> None:
    (place / "net.py").write_text(NET + "\nimport pathlib\npathlib.Path('trace').touch()\n")
    found = user_code.find("net.py:Net")
    assert not (place / "trace").exists() and "helper" not in sys.modules
    assert found.code.sha256 == sha(place / "net.py")
    assert found.code.files == {name: sha(place / name) for name in ("helper.py", "deeper.py")}
    assert found.texts["net.py"] == (place / "net.py").read_text() and len(found.texts) == 3
    user_code.load("net.py:Net")
    assert (place / "trace").exists()


def test_text_is_kept_to_the_byte(place: Path) -> None:
    content = "a = 'é\\u202e'\r\n\tb = 1".encode()
    (place / "net.py").write_bytes(content)
    assert user_code.find("net.py:a").texts["net.py"].encode() == content
    (place / "net.py").write_bytes(b"# -*- coding: latin-1 -*-\na = '\xe9'\n")
    assert "é" in user_code.find("net.py:a").texts["net.py"]
    (place / "net.py").write_bytes(b"\x00\xff" * 9)
    assert user_code.find("net.py:a").texts == {}


def test_a_file_is_executed_as_it_is_now(place: Path) -> None:
    (place / "other.py").write_text("def f():\n    return 1\n")
    one = user_code.load("other.py:f")
    assert user_code.load("other.py:f").thing is one.thing
    (place / "other.py").write_text("def f():\n    return 2\n")  # of one size, at once
    other = user_code.load("other.py:f")
    assert (one.thing(), other.thing()) == (1, 2) and one.code != other.code
    assert not list(place.rglob("other*.pyc"))


def test_a_file_beside_that_changed_after_its_import_is_refused(place: Path) -> None:
    user_code.load("net.py:Net")
    (place / "deeper.py").write_text("VALUE = 2\n")
    assert "deeper.py has changed" in message(RecipeError, lambda: user_code.load("net.py:Net"))


def test_a_package_is_named_with_its_version(place: Path) -> None:
    (place / "lab").mkdir()
    (place / "lab" / "__init__.py").write_text("__version__ = '1.2'\n")
    (place / "lab" / "nets.py").write_text("from torch import nn\nclass Net(nn.Module): ...\n")
    found = user_code.load("lab.nets:Net")
    assert str(found.code) == "lab.nets:Net"
    assert (found.code.package, found.code.version) == ("lab", "1.2")
    assert found.code.sha256 == sha(place / "lab" / "nets.py")
    assert found.code.files == {"lab/__init__.py": sha(place / "lab" / "__init__.py")}
    sites = user_code.find("torch.nn.modules.linear:Linear").code
    assert sites.package == "torch" and sites.version and not sites.files


PACKAGE = {
    "lab/__init__.py": "",
    "lab/layers.py": "from torch import nn\nfrom . import sizes\nclass Layer(nn.Linear): ...\n",
    "lab/sizes.py": "WIDTH = 3\n",
    "lab/deep/__init__.py": "",
    "lab/deep/nets.py": "from torch import nn\nfrom ..layers import Layer\nclass Net(Layer): ...\n",
    "lab/other.py": "raise RuntimeError\n",
}


def test_relative_imports_of_a_package_are_kept_and_digested(place: Path) -> None:
    (place / "lab" / "deep").mkdir(parents=True)
    for name, text in PACKAGE.items():
        (place / name).write_text(text)
    found = user_code.find("lab.deep.nets:Net")
    due = ("lab/__init__.py", "lab/layers.py", "lab/sizes.py", "lab/deep/__init__.py")
    assert found.code.files == {name: sha(place / name) for name in due}
    assert {*found.texts} == {"lab.deep.nets", "lab/layers.py", "lab/sizes.py"}  # none are empty
    (place / "lab" / "sizes.py").write_text("WIDTH = 4\n")
    (change,) = found.code.differs(user_code.find("lab.deep.nets:Net").code)
    assert change.startswith("lab/sizes.py of SHA-256")


def test_a_module_beside_has_its_files(place: Path) -> None:
    found = user_code.find("net:Net")
    assert found.code.files == {name: sha(place / name) for name in ("helper.py", "deeper.py")}


def test_a_relative_import_of_a_file_names_the_way_out(place: Path) -> None:
    """A file alone has no package; one that tries another way is executed as it is."""
    (place / "alone.py").write_text("from .helper import deeper\n")
    words = message(RecipeError, lambda: user_code.load("alone.py:Net"))
    assert "alone.py, line 1: ImportError" in words and "package.module:NAME" in words
    (place / "alone.py").write_text(
        "try:\n    from .helper import deeper\nexcept ImportError:\n    from helper import deeper\n"
    )
    found = user_code.load("alone.py:deeper")
    assert found.thing.VALUE == 1 and {*found.code.files} == {"helper.py", "deeper.py"}


ERRORS = {
    "syntax": ("class Net(:\n", "bad.py, line 1: SyntaxError"),
    "import": ("import nowhere_at_all\n", "bad.py, line 1: ModuleNotFoundError"),
    "raise": (
        "\n\nraise ValueError('a\\x1b[2J\\nb')\n",
        "bad.py, line 3: ValueError: a\\x1b[2J; b",
    ),
    "exit": ("import sys\nsys.exit(0)\n", "bad.py, line 2: it ends the program"),
    "missing": ("class Nett: ...\n", "has no Net: did you mean 'Nett'?"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_what_fails_is_one_line_with_file_and_line(kind: str, place: Path) -> None:
    text, words = ERRORS[kind]
    (place / "bad.py").write_text(text)
    said = message(RecipeError, lambda: user_code.load("bad.py:Net"))
    assert said.startswith("--model bad.py:Net: ") and words in said and "\x1b" not in said


PARTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "instance": ("net.py:made", {}, "is a module that is made already"),
    "number": ("other.py:NUMBER", {}, "is int, not a torch.nn.Module"),
    "class": ("other.py:Plain", {}, "is the class Plain, not a torch.nn.Module"),
    "ambiguous": ("two.py", {}, "say which: one of two.py:One, two.py:Two"),
    "nothing": ("other.py", {}, "say which: other.py:NAME"),
    "wrong name": ("net.py:Net", {"wdith": 3}, "takes no argument 'wdith': did you mean 'width'?"),
    "needed": ("net.py:Net", {}, "needs the argument 'width': --model-arg width=VALUE"),
    "wrong type": ("net.py:Net", {"width": "x"}, "net.py, line 10: TypeError"),
    "returned": ("other.py:returns", {}, "returns int, not a torch.nn.Module"),
    "same": ("other.py:same", {}, "returns the same module twice"),
    "no file": ("none.py:Net", {}, "there is no file none.py"),
    "no module": ("nowhere_at_all:Net", {}, "no module nowhere_at_all"),
    "no parent": ("nowhere_at_all.b:Net", {}, "nowhere_at_all"),
    "builtin": ("builtins:len", {}, "is no file of code"),
}
OTHER = """
from torch import nn
NUMBER, KEPT = 3, nn.Linear(2, 2)
class Plain: ...
def returns(): return 3
def same(): return KEPT
"""


@pytest.mark.parametrize("kind", PARTS)
def test_what_makes_no_module_is_refused(kind: str, place: Path) -> None:
    (place / "other.py").write_text(OTHER)
    two = "from torch import nn\nclass One(nn.Module): ...\nclass Two(nn.Module): ...\n"
    (place / "two.py").write_text(two)
    text, arguments, words = PARTS[kind]

    def make() -> None:
        parts = OwnParts.of(text)
        parts.network(arguments, 0)
        parts.network(arguments, 0)

    assert words in message(RecipeError, make)


def test_a_class_is_made_under_a_seed_that_is_put_back(place: Path) -> None:
    import random

    import numpy as np
    import torch

    (place / "other.py").write_text(
        "import random, numpy, torch\nfrom torch import nn\n"
        "def make():\n    made = nn.Linear(2, 2)\n"
        "    made.drawn = random.random(), numpy.random.rand()\n    return made\n"
    )
    parts = OwnParts.of("other.py:make")
    state = torch.get_rng_state(), np.random.get_state()[2], random.getstate()
    one, again, other = (parts.network({}, seed) for seed in (3, 3, 4))
    assert isinstance(one, nn.Linear) and isinstance(other, nn.Linear)
    assert torch.equal(one.weight, again.weight) and one.drawn == again.drawn  # type: ignore[union-attr]
    assert not torch.equal(one.weight, other.weight) and one.drawn != other.drawn
    assert torch.equal(state[0], torch.get_rng_state()) and state[2] == random.getstate()


def test_arguments_are_not_changed_by_who_takes_them(place: Path) -> None:
    (place / "other.py").write_text(
        "from torch import nn\ndef make(sizes):\n    return nn.Linear(sizes.pop(), 2)\n"
    )
    given = {"sizes": [4, 3]}
    parts = OwnParts.of("other.py:make")
    assert parts.network(given, 0) is not None and given == {"sizes": [4, 3]}


def test_differences_name_the_file() -> None:
    code = UserCode("Net", "net.py", "a" * 64, {"helper.py": "b" * 64})
    assert code.differs(code) == []
    changed = dataclasses.replace(code, sha256="c" * 64)
    assert code.differs(changed) == ["net.py of SHA-256 aaaaaaaaaaaa…, now cccccccccccc…"]
    assert code.differs(dataclasses.replace(code, place="moved.py")) == []
    gone = dataclasses.replace(code, files={})
    assert code.differs(gone) == ["helper.py of SHA-256 bbbbbbbbbbbb…, now none"]
    assert code.differs(dataclasses.replace(code, name="Other")) == ["Net, now Other"]
