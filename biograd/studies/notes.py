"""What a comparison's folder holds of one training beside its run file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from biograd import disk
from biograd.errors import OutputError, RecipeError
from biograd.metrics import figure


def stem(name: str) -> str:
    """Return the name of a cell as the names of its files begin."""
    return re.sub(r"\W+", "-", name).strip("-") or "cell"


@dataclasses.dataclass(frozen=True)
class TrainingFiles:
    """The files of a training, or of the search of a cell.

    Attributes:
        run: the run file; the others lie beside it.
    """

    run: Path

    @classmethod
    def of(cls, folder: Path, cell: str, seed: int | None = None) -> TrainingFiles:
        """Return the files of a training; without a seed those of the cell's search."""
        last = "tuning" if seed is None else f"seed{seed}"
        return cls(folder / f"{stem(cell)}-{last}.h5")

    @property
    def note(self) -> Path:
        """Where its summary goes, when it is complete."""
        return self.run.with_suffix(".json")

    @property
    def journal(self) -> Path:
        """Where the trials of a search are noted."""
        return self.run.with_suffix(".journal")

    @property
    def error(self) -> Path:
        """Where it is noted why the last try failed."""
        return self.run.with_suffix(".error")

    def summary(self) -> dict[str, Any] | None:
        """Return configuration and summary of a training that came to its end.

        Raises:
            RecipeError: they cannot be read.
        """
        try:
            found: dict[str, Any] = json.loads(disk.read_text(self.note))
            # what every table needs
            _ = found["configuration"], figure(found["summary"])
            return found
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise RecipeError(f"{self.note}: is damaged: delete it") from error

    def failure(self) -> str:
        """Return why the last try failed, in one line; "" if it did not, or none is known."""
        try:
            return " ".join(disk.read_bytes(self.error, 2**20).decode(errors="replace").split())
        except OSError:
            return ""

    def note_failure(self, reason: str) -> None:
        """Note why a try failed; "": forget it."""
        if not reason:
            disk.remove(self.error)
            return
        with disk.writing(self.error, "run the study again"):
            self.error.parent.mkdir(parents=True, exist_ok=True)
            disk.write_bytes(self.error, f"{reason}\n".encode())


def noted(files: TrainingFiles, reason: str) -> None:
    """Note a failure as far as the disk allows: what is told of it counts more."""
    with contextlib.suppress(OutputError, OSError):
        files.note_failure(reason)
