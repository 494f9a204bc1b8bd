"""Where a Lightning logger is expected, a writer of runs can stand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from biograd.errors import RecipeError
from biograd.runs.layout import to_json
from biograd.runs.storage import RunPaths

Status = Literal["completed", "interrupted", "crashed"]


class Logger:
    """The methods of a Lightning logger, by those of a writer."""

    _place: RunPaths
    _head: dict[str, Any]
    _step: int

    def scalars(self, stream: str, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Append one row of numbers."""
        raise NotImplementedError

    def commit(self, step: int) -> None:
        """Put all waiting rows on disk."""
        raise NotImplementedError

    def close(self, status: Status = "completed") -> None:
        """Commit what waits and finish the file."""
        raise NotImplementedError

    def _check_open(self) -> None:
        raise NotImplementedError

    def _amend(self, changes: Mapping[str, Any]) -> None:
        raise NotImplementedError

    @property
    def name(self) -> str:
        """The name of the file without its ending (as Lightning asks a logger)."""
        return self._place.file.stem

    @property
    def version(self) -> str:
        """The identity of the run (as Lightning asks a logger)."""
        return str(self._head["attributes"]["run_id"])

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row to the stream ``metrics``; ``epoch`` among the metrics is its epoch."""
        values = dict(metrics)
        epoch = int(values.pop("epoch", -1))
        self.scalars("metrics", self._step if step is None else step, epoch, values)

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Add to ``/hyperparameters``; what JSON cannot hold is written as text."""
        self._check_open()
        values = params if isinstance(params, Mapping) else vars(params)
        plain = {str(key): _plain(value) for key, value in values.items()}
        self._amend({"hyperparameters": {**self._head["hyperparameters"], **plain}})

    def save(self) -> None:
        """Commit what waits (as Lightning asks a logger)."""
        self.commit(self._step)

    def finalize(self, status: str) -> None:
        """Close the run: ``success`` is completed, ``failed`` is crashed, else interrupted."""
        words: dict[str, Status] = {"success": "completed", "failed": "crashed"}
        words |= {"completed": "completed", "crashed": "crashed"}
        self.close(words.get(status, "interrupted"))


def _plain(value: Any) -> Any:
    try:
        return json.loads(to_json("hyperparameter", value))
    except RecipeError:
        return str(value)
