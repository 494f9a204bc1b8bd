"""The package as a whole: its front door, its layers, what it ships."""

from __future__ import annotations

import ast
import importlib
import statistics
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import biograd
from biograd import errors, recipes
from biograd.commands import doctor

HEAVY = ("torch", "snntorch", "brian2", "h5py", "sklearn", "matplotlib", "rich", "numpy")
INTERCHANGEABLE = ("commands", "estimators", "neurons")
"""Folders of parts of one kind, which may be many."""
LIGHT = ("biograd", "biograd.errors", "biograd.recipes", "biograd.commands", "biograd.__main__")


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_public_names_are_those_that_are_listed() -> None:
    assert {name for name, value in vars(errors).items() if _is_error(value)} < set(biograd._HOMES)
    assert dir(biograd) == biograd.__all__ == sorted({*biograd._HOMES, "__version__"})
    submodules = {path.stem for path in Path(biograd.__file__).parent.iterdir()}
    public = {name for name in vars(biograd) if not name.startswith("_")} - submodules
    assert public - {"annotations"} <= set(biograd.__all__)


@pytest.mark.parametrize("name", biograd.__all__)
def test_every_public_name_is_found_at_home(name: str) -> None:
    value = getattr(biograd, name)
    if name in biograd._HOMES:
        assert value is getattr(importlib.import_module(biograd._HOMES[name]), name)
        assert getattr(value, "__doc__", None)


def test_another_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'tarin'"):
        biograd.tarin  # noqa: B018


@pytest.mark.parametrize("module", LIGHT)
def test_what_is_light_loads_nothing_heavy(module: str) -> None:
    source = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert _output("-c", source) == "[]"


def test_the_check_of_lightness_can_fail() -> None:
    source = f"import sys, numpy; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert _output("-c", source) == "['numpy']"


SLOW_TO_IMPORT = (
    *("torch._dynamo", "torch._inductor", "sklearn", "scipy", "sympy", "pandas", "matplotlib"),
    *("brian2", "snntorch", "networkx", "triton", "numba", "optuna"),
)


@pytest.mark.parametrize("model", ["spiking", "ann"])
def test_a_training_waits_for_nothing_but_torch_and_its_run_file(
    model: str, tmp_path: Path
) -> None:
    words = ["train", "--model", model, "--epochs", "1", "-q", "-o", str(tmp_path / "run.h5")]
    run = f"from biograd.__main__ import main; main({words!r})"
    names = f"[name for name in {SLOW_TO_IMPORT!r} if name in sys.modules]"
    source = f"import atexit, sys; atexit.register(lambda: print({names})); {run}"
    assert _output("-c", source).splitlines()[-1] == "[]"


def test_an_optimiser_of_torch_imports_its_compiler() -> None:
    made = "torch.optim.Adam([torch.zeros(1)])"
    assert _output("-c", f"import sys, torch; {made}; print('torch._dynamo' in sys.modules)") in (
        "True"
    )


def test_imports_only_look_back(root: Path) -> None:
    command = "from importlinter.cli import lint_imports_command as run; run()"
    done = subprocess.run(
        [sys.executable, "-c", command, "--no-cache", "--no-logo"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kept, 0 broken" in done.stdout


def test_nothing_imports_in_a_circle() -> None:
    folder = Path(biograd.__file__).parent
    found = _imports(
        {_name(path, folder): path.read_text("utf-8") for path in folder.rglob("*.py")}
    )
    assert len(found) > 150 and "biograd.errors" in found["biograd.registry"]
    assert not _circles(found)


def test_a_circle_is_seen_wherever_its_imports_stand() -> None:
    lazy = "def f():\n    from p.b import g\n"
    typed = "if TYPE_CHECKING:\n    from p import c\n"
    found = _imports({"p": "", "p.a": lazy, "p.b": typed, "p.c": "import p.a", "p.d": "import p.c"})
    assert _circles(found) == ["p.a", "p.b", "p.c"]


def test_the_layers_name_every_module(project: dict[str, Any]) -> None:
    layers = " ".join(project["tool"]["importlinter"]["contracts"][0]["layers"])
    listed = set(layers.replace("(", " ").replace(")", " ").replace("|", " ").split())
    folder = Path(biograd.__file__).parent
    found = {
        f"biograd.{path.stem}"
        for path in folder.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert found - {"biograd.__init__"} <= listed


def test_no_file_and_no_class_has_the_name_of_another() -> None:
    sources = _sources()
    assert not _twice(path.name for path in sources if path.name != "__init__.py")
    classes = [
        node.name
        for text in sources.values()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef)
    ]
    assert len(classes) > 300 and not _twice(classes)
    assert _twice(["Rows", "Batch", "Rows"]) == ["Rows"]


def test_no_folder_holds_more_than_fifteen_files() -> None:
    files = Counter(path.parent for path in _sources())
    assert len(files) > 25
    full = {folder.name for folder, count in files.items() if count > 15}
    assert full <= set(INTERCHANGEABLE)


def test_files_and_functions_are_short() -> None:
    sources = _sources()
    long = {path.name for path, text in sources.items() if len(text.splitlines()) > 400}
    assert not long
    lengths = [
        len(_body(node, text.splitlines()))
        for text in sources.values()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
    ]
    assert len(lengths) > 2000 and statistics.median(lengths) <= 8


def test_recipes_are_found_beside_the_package_and_inside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "biograd"
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "beside.toml").touch()
    monkeypatch.setattr(recipes.toml, "__file__", str(package / "recipes" / "toml.py"))
    assert recipes.names("models") == ["beside"]
    (package / "shipped" / "models").mkdir(parents=True)
    (package / "shipped" / "models" / "inside.toml").touch()
    assert recipes.names("models") == ["inside"]


def test_the_wheel_ships_recipes_types_and_no_other_top_level(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"biograd"}
    wanted = {"biograd/py.typed", "biograd/__init__.pyi"}
    for folder in ("models", "datasets", "cli"):
        files = [path.name for path in (root / folder).iterdir() if path.is_file()]
        assert files
        wanted |= {f"biograd/shipped/{folder}/{name}" for name in files}
    assert wanted <= names


def test_no_python_lies_among_the_recipes(root: Path) -> None:
    for folder in ("models", "datasets", "cli"):
        assert not list((root / folder).rglob("*.py"))


def test_the_doctor_knows_what_the_project_needs(project: dict[str, Any]) -> None:
    def bare(requirements: list[str]) -> set[str]:
        return {
            text.split("[")[0].split(";")[0].split("<")[0].split(">")[0].strip()
            for text in requirements
        }

    assert bare(project["project"]["dependencies"]) == set(doctor.REQUIRED)
    extras = dict(project["project"]["optional-dependencies"])
    del extras["test"]
    assert {name: bare(texts) for name, texts in extras.items()} == {
        name: set(packages) for name, packages in doctor.EXTRAS.items()
    }


def _sources() -> dict[Path, str]:
    folder = Path(biograd.__file__).parent
    return {path: path.read_text("utf-8") for path in folder.rglob("*.py")}


def _twice(names: Iterable[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _body(function: ast.FunctionDef, lines: list[str]) -> list[str]:
    """Return the lines of a function, from its name on, that are neither docstring nor blank."""
    first = function.body[0]
    stated = range(first.lineno, first.end_lineno + 1) if ast.get_docstring(function) else ()
    numbers = range(function.lineno, function.end_lineno + 1)
    return [lines[n - 1] for n in numbers if n not in stated and lines[n - 1].strip()]


def _name(path: Path, folder: Path) -> str:
    parts = path.relative_to(folder.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(sources: dict[str, str]) -> dict[str, set[str]]:
    """Return for each module those that it imports, at its top, in functions and for types."""
    found: dict[str, set[str]] = {name: set() for name in sources}
    for name, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            given: list[str] = []
            if isinstance(node, ast.Import):
                given = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                given = [one if one in sources else node.module for one in inner]
            found[name] |= {one for one in given if one in sources}
    return found


def _circles(imports: dict[str, set[str]]) -> list[str]:
    """Return the modules that import themselves by way of others."""
    reached = {name: set(others) for name, others in imports.items()}
    for between in reached:  # Warshall's transitive closure
        for name in reached:
            if between in reached[name]:
                reached[name] |= reached[between]
    return sorted(name for name, others in reached.items() if name in others)


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, errors.BiogradError)


def _output(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
