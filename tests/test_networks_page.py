"""The page on networks: what it shows can be built."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import biograd
from biograd.recipes import ModelRecipe, construct


def blocks(root: Path, language: str) -> list[str]:
    page = (root / "docs" / "networks.md").read_text(encoding="utf-8")
    found = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    assert found
    return found


def test_its_program_runs_and_prints_what_it_says(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = blocks(root, "python")
    exec(compile(program, "networks.md", "exec"), {})
    assert capsys.readouterr().out.strip() == program.rpartition("  # ")[2].strip()


def test_its_recipes_build(root: Path, tmp_path: Path) -> None:
    neuron, layers, circuit, delays = blocks(root, "toml")
    path = tmp_path / "recipe.toml"
    base = '[network]\nkind = "spiking"\n'
    long = "[encoding]\nduration_ms = 50.0\n"
    shapes = ((base + neuron, (16,)), (layers, (1, 16, 16)), (circuit, (16,)))
    for text, shape in (*shapes, (circuit + delays + long, (16,))):
        path.write_text(text.replace(', [10, 12, ...]"', '"'), encoding="utf-8")
        network = biograd.build(path, shape, 3)
        assert network.sites[-1].name == "readout"


def test_a_misspelt_neuron_is_named() -> None:
    with pytest.raises(biograd.BiogradError, match=r"neuron\.kind = 'leeky'.*did you mean 'leaky'"):
        construct(ModelRecipe, {"neuron": {"kind": "leeky"}}, "recipe")
