"""The README and the pages: what they show runs, what they point to is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_registry import REGISTRIES

LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def readme(root: Path) -> str:
    return (root / "README.md").read_text(encoding="utf-8")


def test_links_lead_to_files(root: Path) -> None:
    pages = [root / "README.md", *root.glob("docs/*.md"), *root.glob("*/README.md")]
    links = [(page, link) for page in pages for link in LINK.findall(page.read_text("utf-8"))]
    assert len(pages) > 6 and len(links) > 15
    assert [(page, link) for page, link in links if not (page.parent / link).exists()] == []


def test_every_page_can_be_reached(root: Path, readme: str) -> None:
    pages = {f"docs/{page.name}" for page in root.glob("docs/*.md")}
    assert pages and pages <= set(LINK.findall(readme))


def test_the_readme_is_a_door_that_opens_with_an_example(readme: str) -> None:
    lines = readme.splitlines()
    assert len(lines) < 120
    assert "python -m pytest" in readme
    end = lines.index("```", lines.index("```python"))
    assert end < 30 and re.search(r"# tensor\(0\.\d+\)$", lines[end - 1])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_examples_print_what_they_say(
    readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed: list[Any] = []
    names: dict[str, Any] = {"print": lambda *values: printed.append(values)}
    first, second, *_ = BLOCK.findall(readme)
    exec(first, names)
    promised = float(first.rpartition("tensor(")[2].split(")")[0])
    assert abs(float(printed[0][0]) - promised) < 0.01
    exec(second, names)
    assert (tmp_path / "network.nir").is_file() and (tmp_path / "spikes.h5").is_file()
    assert printed[1][0] > 0.95 and "hidden layers" in str(printed[2][0])


def test_the_page_on_extending_names_every_registry(root: Path) -> None:
    page = (root / "docs" / "extending.md").read_text(encoding="utf-8")
    groups = set(re.findall(r"`(biograd\.\w+)`", page))
    assert {one.group for one in REGISTRIES} <= groups


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_example_of_the_readme_repeats_in_fresh_processes(readme: str, tmp_path: Path) -> None:
    code = re.sub(r"in range\(\d+\)", "in range(1)", BLOCK.findall(readme)[0])
    code += "print([p.double().sum().item() for p in network.parameters()])\n"
    unseeded = code.replace("torch.manual_seed(0)\n", "torch.seed()\n")
    assert unseeded != code
    ends = [
        subprocess.run(
            [sys.executable, "-c", text], capture_output=True, text=True, cwd=tmp_path, check=True
        ).stdout
        for text in (code, code, unseeded)
    ]
    assert ends[0] == ends[1] != ends[2]  # the last: the order of the examples is drawn
