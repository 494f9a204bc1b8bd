"""Checkpoints come back bit for bit, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from biograd.errors import RecipeError, RunFileError
from biograd.runs import checkpoint

BASE = torch.arange(24.0).reshape(4, 6)
TENSORS = {
    "uint8": torch.Generator().get_state(),
    "int64": torch.tensor([-(2**62), 2**62]),
    "float64": torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    "bfloat16": torch.ones(3, dtype=torch.bfloat16) / 3,
    "bool": torch.tensor([True, False]),
    "complex64": torch.complex(BASE, -BASE).conj(),
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "another_empty": torch.zeros(2, 0),
    "special": torch.tensor([float("nan"), float("inf"), -0.0]),
    "transposed": BASE.t(),
    "strided": BASE[::2, 1::2],
    "expanded": torch.ones(1, 3).expand(5, 3),
    "shared": BASE,
    "shared_again": BASE,
    "part": BASE[1:3],
    "parameter": torch.nn.Parameter(BASE.clone()),
}
META = {"epoch": 3, "best": float("inf"), "names": ["a", "ü"], "nested": {"none": None}}


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    digest = checkpoint.save(tmp_path / "7", TENSORS, META)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["7.json", "7.safetensors"]
    tensors, meta = checkpoint.load(tmp_path / "7", digest)
    assert meta == META and set(tensors) == set(TENSORS)
    for name, expected in TENSORS.items():
        found = tensors[name]
        assert found.dtype == expected.dtype and found.shape == expected.shape, name
        assert torch.equal(
            found.nan_to_num(5.0) if name == "special" else found,
            expected.nan_to_num(5.0) if name == "special" else expected,
        ), name
    tensors["shared"] += 1  # the copies are independent
    assert torch.equal(tensors["shared_again"], BASE)


def test_bytes_and_files_agree() -> None:
    body, text = checkpoint.to_bytes(TENSORS, META)
    assert checkpoint.to_bytes(TENSORS, META) == (body, text)
    tensors, meta = checkpoint.from_bytes(body, text)
    assert meta == META and torch.equal(tensors["transposed"], BASE.t())
    assert checkpoint.from_bytes(*checkpoint.to_bytes({}, {})) == ({}, {})


def test_damage_is_noticed(tmp_path: Path) -> None:
    body, text = checkpoint.to_bytes({"a": BASE}, {"x": 1})
    other = checkpoint.to_bytes({"a": BASE + 1}, {"x": 1})
    flipped = body[:-1] + bytes([body[-1] ^ 1])
    later = text.replace(b'"1.0"', b'"2.0"')
    for wrong in [(flipped, text), (body[:-1], text), (body, text[:-5]), (other[0], text),
                  (body, b"[]"), (body, b"{}"), (body, later)]:  # fmt: skip
        with pytest.raises(RunFileError) as caught:
            checkpoint.from_bytes(*wrong)
        assert "\n" not in str(caught.value)
    with pytest.raises(RunFileError, match="cannot be read"):
        checkpoint.load(tmp_path / "none")
    digest = checkpoint.save(tmp_path / "1", {"a": BASE}, {"x": 1})
    checkpoint.save(tmp_path / "1", {"a": BASE}, {"x": 2})
    with pytest.raises(RunFileError, match="digest"):
        checkpoint.load(tmp_path / "1", digest)


def test_what_cannot_be_kept_is_refused() -> None:
    with pytest.raises(RecipeError, match="JSON"):
        checkpoint.to_bytes({}, {"tensor": BASE})
    with pytest.raises(RecipeError, match="dense"):
        checkpoint.to_bytes({"sparse": torch.eye(3).to_sparse()}, {})


def test_nothing_in_it_is_pickled() -> None:
    body, text = checkpoint.to_bytes(TENSORS, META)
    assert json.loads(text)["meta"]["epoch"] == 3
    assert b"torch" not in body and not body.startswith(b"\x80")
