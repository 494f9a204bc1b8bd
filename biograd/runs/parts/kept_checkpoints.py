"""Which checkpoints of a run that goes on lie on the disk."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from biograd.runs.contents import Commit
from biograd.runs.storage import RunPaths

if TYPE_CHECKING:
    from torch import Tensor

KEPT_CHECKPOINTS = 2
"""Of those that do not last."""


def files_of(
    place: RunPaths,
    commits: Sequence[Commit],
    step: int,
    number: int,
    checkpoint: tuple[Mapping[str, Tensor], Mapping[str, Any]] | None,
) -> tuple[str | None, str | None, list[tuple[Path, bytes]]]:
    """Return the name and digest of a checkpoint, and its files with what they will hold."""
    if checkpoint is None:
        return None, None, []
    from biograd.runs.checkpoint import files, to_bytes  # loads torch

    taken = {commit.checkpoint for commit in commits}
    name = f"{step}-{number}" if str(step) in taken else str(step)
    content = to_bytes(*checkpoint)
    targets = files(place.parts / "checkpoints" / name)
    digest = hashlib.sha256(content[1]).hexdigest()
    return name, digest, list(zip(targets, content, strict=True))


def prune(place: RunPaths, commits: Sequence[Commit]) -> None:
    """Delete all but the last checkpoints that commits name, and those that last."""
    passing = [one.checkpoint for one in commits if one.checkpoint and not one.lasting]
    folder = place.parts / "checkpoints"
    for name in passing[:-KEPT_CHECKPOINTS][-KEPT_CHECKPOINTS:]:
        for ending in (".safetensors", ".json"):
            with contextlib.suppress(OSError):
                (folder / f"{name}{ending}").unlink()
