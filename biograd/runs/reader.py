"""Read a run: a finished file, or the folder of one that still goes or was killed.

Both give the same answers; in a folder, every segment is compared with its digest when it is
first read. Nothing is loaded before it is asked for.
"""

from __future__ import annotations

import html
import os
from typing import TYPE_CHECKING, Any

from biograd.errors import RecipeError, RunFileError, visible
from biograd.runs.contents import Commit, described, find, seal_is_due
from biograd.runs.layout import Array
from biograd.runs.storage import RunPaths
from biograd.runs.views.entries import Entry, entries
from biograd.runs.views.recorded_run import RecordedRun

if TYPE_CHECKING:
    from biograd.runs.checkpoint import Checkpoint


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a run for reading, given ``run.h5`` or ``run.h5.parts``.

    Of a run that still goes, it shows what was committed when it was opened.

    Raises:
        RunFileError: there is no run, it is damaged, or it is from a newer version.
    """
    return Run(find(RunPaths.of(path)))


SHOWN = ("model", "dataset", "rule", "seed", "created_at")
"""Attributes that a notebook shows."""


def _html(value: object) -> str:
    return html.escape(visible(str(value)))


class Run(RecordedRun):
    """One run; see :func:`open_run`."""

    def __enter__(self) -> Run:
        """Return the run; leaving closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def __repr__(self) -> str:
        """Return path, status and layers."""
        layers = ", ".join(self.layers) or "none"
        return visible(f"<run {self.path} ({self.status}), layers: {layers}>")

    def _repr_html_(self) -> str:
        """Return a table for notebooks, in which every text of the file is text."""
        said = self.attributes
        facts = {"run": self.path, "status": self.status}
        facts |= {name: said[name] for name in SHOWN if name in said}
        facts |= {"snapshots": len(self.snapshots.get("step", ()))}
        facts |= {
            f"layer {name}": f"{one.kind}, {one.n_units}" for name, one in self.layers.items()
        }
        rows = (f"<tr><th>{_html(k)}</th><td>{_html(v)}</td></tr>" for k, v in facts.items())
        return f"<table>{''.join(rows)}</table>"

    def close(self) -> None:
        """Close the file."""
        self._contents.close()

    @property
    def sealed(self) -> bool:
        """Whether a digest says that all is as it was written; the first run files had none."""
        return self._contents.sealed

    @property
    def lost_seal(self) -> bool:
        """Whether the file was written with a digest and has none: another program changed it."""
        return not self.sealed and seal_is_due(self._contents.attributes)

    @property
    def status(self) -> str:
        """``running``, ``completed``, ``interrupted`` or ``crashed``."""
        return self._contents.status

    @property
    def attributes(self) -> dict[str, Any]:
        """What the run says of itself: seed, device, versions, times."""
        return described(self._contents)

    def attribute(self, name: str) -> str:
        """Return a text that every run has among its attributes.

        Raises:
            RunFileError: the run lacks it.
        """
        value = self._contents.attributes.get(name)
        if not isinstance(value, str):
            raise RunFileError(f"{self.path}: is damaged (it lacks the attribute {name})")
        return value

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that repeats the run."""
        return self._contents.config

    @property
    def environment(self) -> dict[str, Any]:
        """Where the run was made."""
        return self._contents.environment

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """What another program logged about its settings."""
        return self._contents.hyperparameters

    @property
    def credit(self) -> dict[str, Any]:
        """The ``shape`` of each parameter and whose ``credit`` it has; empty in early files."""
        return self._contents.credit

    @property
    def code(self) -> dict[str, dict[str, str]]:
        """The text of the user's own code, by ``model``, ``loss``, ``reset`` and file."""
        return self._contents.code

    @property
    def summary(self) -> dict[str, Any]:
        """What came out in the end; empty until then."""
        return self._contents.summary

    @property
    def commits(self) -> Array:
        """Segment, step, rank and time in ns of every commit, int64 ``[commit, 4]``."""
        return self._contents.numbers

    @property
    def checkpoints(self) -> list[int]:
        """The steps of the checkpoints that can be read."""
        return sorted({commit.step for commit in self._available()})

    def _available(self) -> list[Commit]:
        named = [commit for commit in self._contents.commits if commit.checkpoint]
        if self._contents.packed:
            return named
        folder = self._contents.place.parts / "checkpoints"
        return [commit for commit in named if (folder / f"{commit.checkpoint}.json").exists()]

    @property
    def last_step(self) -> int:
        """The step of the last checkpoint, as that says itself.

        Raises:
            RunFileError: there is none, or it is damaged.
        """
        step = self.checkpoint()[1].get("step")
        if type(step) is not int or not 0 <= step < 2**53:
            raise RunFileError(f"{self.path}: its checkpoint is damaged (step is {step!r})")
        return step

    def checkpoint(self, step: int | None = None) -> Checkpoint:
        """Return the tensors and the meta of a checkpoint, the last one if ``step`` is None.

        Raises:
            RecipeError: there is none of this step.
            RunFileError: there is none, or it is damaged.
        """
        from biograd.runs import checkpoint
        from biograd.runs.parts.resuming import packed_checkpoint

        found = [commit for commit in self._available() if step in (None, commit.step)]
        if not found:
            if step is None or not self.checkpoints:
                raise RunFileError(f"{self.path}: has no checkpoint")
            known = ", ".join(map(str, self.checkpoints))
            raise RecipeError(f"{self.path}: has no checkpoint of step {step} (there are: {known})")
        commit = found[-1]
        if self._contents.packed:
            body, text = packed_checkpoint(self._contents, commit)
            return checkpoint.from_bytes(body, text, f"{self.path}: checkpoint {commit.step}")
        path = self._contents.place.parts / "checkpoints" / str(commit.checkpoint)
        return checkpoint.load(path, commit.checkpoint_sha256)

    def unexplained(self) -> list[str]:
        """Return data sets of a finished file that lack a name, units or a sentence.

        Files of before format 1.1, and those that still grow, owe none.
        """
        file = self._contents.sources.file
        if file is None or self._contents.attributes.get("format_version") == "1.0":
            return []
        owed = {"long_name", "units", "description"}
        return [name for name in file.datasets() if owed - file.attributes(name).keys()]

    def tree(self) -> list[Entry]:
        """Return every data set with its shape, dtype and sizes, sorted by name.

        In a parts folder these are those that grow, with the rows of all segments together.
        """
        return self._ask(entries)
