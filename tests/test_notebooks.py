"""The tutorials: what is stored of them is whole, and they run as they are.

A notebook is executed by the interpreter that runs the tests, in a copy of ``examples/``.  Its
metadata may name real data that it needs, ``{"biograd": {"data": ["spoken_digits_events"]}}``:
without them its execution is skipped.
"""

from __future__ import annotations

import copy
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from data_paths import shared_data
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

FOLDER = Path(__file__).parent.parent / "examples"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
LARGEST = 1_500_000
"""Bytes of a stored notebook."""
MACHINE = re.compile(r"(?<![\w.:/])/(home|root|work|tmp|Users|mnt|opt|usr|var)\b|\b[A-Z]:\\\w")
"""A path of the machine that ran it; not one of an address, nor one that begins with a name."""
PICTURES = ("image/png", "image/svg+xml")


class OwnKernel(AsyncKernelManager):
    """Starts this interpreter, whatever kernels are installed beside it."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """Return how to start it."""
        launch = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=launch, display_name="Python 3", language="python")


def executed(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Return the notebook after it ran in ``folder``.

    Raises:
        CellExecutionError: a cell raised.
    """
    run = copy.deepcopy(notebook)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(run, timeout=900, kernel_manager_class=OwnKernel, resources=resources).execute()
    return run


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    """Return what all cells put out."""
    return [one for cell in notebook.cells for one in cell.get("outputs", [])]


def pictures(notebook: NotebookNode) -> int:
    """Return the number of pictures that it shows."""
    return sum(any(kind in one.get("data", {}) for kind in PICTURES) for one in outputs(notebook))


def said(output: NotebookNode) -> str:
    """Return the text of an output, an error's traceback too."""
    parts = [output.get("text", ""), *output.get("traceback", [])]
    parts += [str(text) for kind, text in output.get("data", {}).items() if kind not in PICTURES]
    return "\n".join(parts)


def printed_faults(notebook: NotebookNode) -> list[str]:
    """Return errors and warnings, of which a reader should see none."""
    kinds = [(one.output_type, one.get("name")) for one in outputs(notebook)]
    faults = ["a cell ended in an error"] if any(kind == "error" for kind, _ in kinds) else []
    loud = [said(one) for one in outputs(notebook) if one.get("name") == "stderr"]
    return faults + [f"a warning: {text}" for text in loud]


def stored_faults(notebook: NotebookNode) -> list[str]:
    """Return what is wrong with a notebook as it is stored."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    found = printed_faults(notebook)
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        found.append("its cells did not run in their order")
    texts = [cell.source for cell in notebook.cells] + [said(one) for one in outputs(notebook)]
    found += [f"a path of a machine: {text}" for text in texts if MACHINE.search(text)]
    if not pictures(notebook):
        found.append("it shows no picture")
    if notebook.cells[0].cell_type != "markdown":
        found.append("it does not begin by saying what it is")
    return found


def small(*sources: str) -> NotebookNode:
    """Return a notebook of these cells that did not run."""
    return new_notebook(cells=[new_markdown_cell("# small"), *map(new_code_cell, sources)])


@pytest.fixture
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in: a kernel leaves nothing elsewhere, and shows pictures."""
    for variable, name in (("IPYTHONDIR", "ipython"), ("JUPYTER_RUNTIME_DIR", "runtime")):
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    return tmp_path


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_is_stored_is_whole(name: str) -> None:
    assert (FOLDER / name).stat().st_size <= LARGEST
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(notebook)
    assert stored_faults(notebook) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs(name: str, quiet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(FOLDER / name, as_version=4)
    for needed in notebook.metadata.get("biograd", {}).get("data", []):
        monkeypatch.setenv("BIOGRAD_DATA", str(shared_data(needed).parent))
    folder = quiet / "examples"
    shutil.copytree(FOLDER, folder)
    found = executed(notebook, folder)
    assert printed_faults(found) == []
    assert pictures(found) == pictures(notebook)


def test_all_are_listed() -> None:
    listed = (FOLDER / "README.md").read_text()
    assert [name for name in NOTEBOOKS if f"({name})" not in listed] == []


@pytest.mark.timeout(300)
def test_errors_and_warnings_are_seen(quiet: Path) -> None:
    shown = "from IPython.display import SVG\nSVG('<svg/>')"
    loud = small("import sys\nprint(sys.executable)", shown, "sys.stderr.write('old\\n');")
    found = executed(loud, quiet)
    assert [fault.strip() for fault in printed_faults(found)] == ["a warning: old"]
    assert pictures(found) == 1 and said(outputs(found)[0]).strip() == sys.executable
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        executed(small("1 / 0"), quiet)


def whole() -> NotebookNode:
    """Return a notebook without a fault."""
    notebook = small("1", "2")
    shown = [new_output("display_data", {"image/png": "aGk="})]
    for place, cell in enumerate(notebook.cells[1:], 1):
        cell.execution_count, cell.outputs = place, shown
    return notebook


def _stream(notebook: NotebookNode, name: str, text: str) -> None:
    notebook.cells[1].outputs = [
        *notebook.cells[1].outputs,
        new_output("stream", name=name, text=text),
    ]


FAULTS: dict[str, Callable[[NotebookNode], Any]] = {
    "order": lambda given: given.cells[1].update(execution_count=2),
    "order again": lambda given: given.cells[2].update(execution_count=None),
    "warning": lambda given: _stream(given, "stderr", "UserWarning"),
    "path": lambda given: _stream(given, "stdout", "written to /home/ada/mine.h5"),
    "path in code": lambda given: given.cells[1].update(source="load('/tmp/mine.npz')"),
    "path of another system": lambda given: _stream(given, "stdout", "C:\\Users\\ada"),
    "picture": lambda given: [cell.update(outputs=[]) for cell in given.cells[1:]],
    "begin": lambda given: given.cells.pop(0),
    "error": lambda given: given.cells[1].update(
        outputs=[new_output("error", ename="E", evalue="", traceback=[])]
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_what_is_stored_is_seen(fault: str) -> None:
    notebook = whole()
    assert stored_faults(notebook) == []
    FAULTS[fault](notebook)
    assert len(stored_faults(notebook)) >= 1


def test_paths_that_are_no_machines() -> None:
    for text in ("https://example.org/home/x", "runs/mine.h5", "1/work", "../shared/tmp"):
        notebook = whole()
        _stream(notebook, "stdout", text)
        assert stored_faults(notebook) == []
