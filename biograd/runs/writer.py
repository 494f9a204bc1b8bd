"""Write a run so that whatever was committed survives the death of the process.

A commit puts on disk, in this order: the checkpoint, the segment with all rows since the commit
before, and one line that names both. What the line names is complete; what no line names does not
exist. See :mod:`biograd.runs.layout` for the files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from biograd import disk
from biograd.errors import BiogradError, OutputError, RecipeError
from biograd.runs.contents import Commit, find, read_commits, read_parts, segment_path
from biograd.runs.json_text import read_object
from biograd.runs.layout import LayerInfo, Probe, check_layers, to_json
from biograd.runs.logger import Logger, Status
from biograd.runs.names import flattened, metric_name
from biograd.runs.parts import kept_checkpoints
from biograd.runs.parts.buffer import Buffer, Snapshot, record, segment_bytes
from biograd.runs.parts.folder import begin, complete, config_digest, header, refuse_existing
from biograd.runs.parts.pack import pack_parts
from biograd.runs.parts.settling import settle
from biograd.runs.schema.row_info import RowInfo, rows_of
from biograd.runs.schema.run_tables import STEPS
from biograd.runs.storage import RunPaths

if TYPE_CHECKING:
    from torch import Tensor

    from biograd.runs.checkpoint import Checkpoint

STATUSES = ("completed", "interrupted", "crashed")
COMMIT_BYTES = 8 * 2**20

log = logging.getLogger(__name__)


class RunWriter(Logger):
    """Writes one run; the only process of a distributed run that does so is rank 0.

    As a context manager it closes with ``completed``, after Ctrl-C with ``interrupted``, after
    another exception with ``crashed``. By its methods ``log_metrics``, ``log_hyperparams``,
    ``save`` and ``finalize`` it can also stand where a Lightning logger is expected.

    Args:
        path: the finished file, such as ``run.h5``; until then data lie in ``run.h5.parts``.
        config: what makes the run repeatable, as JSON values.
        environment: what :func:`biograd.runs.environment.environment` returned.
        attributes: seed, device, dataset and the like, as text, numbers or truth values.
        probe: the stimuli of all snapshots; None if there are none.
        layers: what is recorded, by module path.
        credit: shape and creditor of each parameter by its name (``engine.Account``).
        code: text of the user's own files, by part and by file.
        rows: data sets of snapshots that this run has beside those of all, by name.
        recording: what else to say of what is recorded and when, as JSON values.
        force: replace an existing run.
        commit_bytes: commit without being asked when so many bytes wait.

    Raises:
        RecipeError: the run exists, or an argument is not valid.
        OutputError: the disk is full or cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        attributes: Mapping[str, Any],
        probe: Probe | None,
        layers: Mapping[str, LayerInfo],
        credit: Mapping[str, Any] | None = None,
        code: Mapping[str, Any] | None = None,
        rows: Mapping[str, RowInfo] | None = None,
        recording: Mapping[str, Any] | None = None,
        force: bool = False,
        commit_bytes: int = COMMIT_BYTES,
    ) -> None:
        """Make the parts folder with its header."""
        place = RunPaths.of(path)
        check_layers(layers, probe)
        head = header(
            attributes=complete(attributes, config, environment),
            config=config,
            environment=environment,
            layers=layers,
            probe=probe,
            credit=credit,
            code=code,
            recording={
                **(recording or {}),
                "rows": {name: row.as_json() for name, row in (rows or {}).items()},
            },
        )
        rows_of(head["recording"])
        self._start(place, begin(place, head, probe, force), commit_bytes)

    def _start(self, place: RunPaths, lock: disk.Lock, commit_bytes: int) -> None:
        self._place, self._lock = place, lock
        self._head = read_object(place.parts / "header.json")
        contents = read_parts(place, self._head)
        self._commits: list[Commit] = contents.commits
        self._written = (place.parts / "commits.jsonl").stat().st_size
        self._rows = Counter(self._commits[-1].rows if self._commits else {})
        self._buffer = Buffer(contents.layers, contents.probe, contents.rows)
        self._commit_bytes = commit_bytes
        self._step = self._commits[-1].step if self._commits else 0
        self._closed = False

    @classmethod
    def check(cls, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Refuse early, before data are loaded, what the writer would refuse.

        Raises:
            RecipeError: a run lies at ``path`` and ``force`` is not set.
        """
        disk.check_name(Path(path))
        place = RunPaths.of(path)
        settle(place)
        refuse_existing(place, force)

    @classmethod
    def resume(
        cls,
        path: str | os.PathLike[str],
        *,
        config: Mapping[str, Any] | None = None,
        commit_bytes: int = COMMIT_BYTES,
        tried: Callable[[Checkpoint], None] = lambda checkpoint: None,
    ) -> tuple[RunWriter, Checkpoint]:
        """Go on with a run that stopped; return its writer and its last checkpoint.

        Rows after that checkpoint are dropped, so that training from it writes them again. A
        finished file is taken apart, and stays until the longer run is packed.

        Args:
            path: ``run.h5`` or ``run.h5.parts``.
            config: replaces the configuration, for more epochs; None keeps it.
            commit_bytes: commit without being asked when so many bytes wait.
            tried: called with the checkpoint before anything is changed; may raise.

        Raises:
            RunFileError: there is no such run, it is damaged, or it has no checkpoint.
            RecipeError: another process still writes it.
            OutputError: the disk is full or cannot be written.
        """
        from biograd.runs.parts.resuming import take_over, unpack

        place = RunPaths.of(path)
        contents = find(place)
        try:
            lock, restored = unpack(contents, tried) if contents.packed else take_over(place, tried)
        finally:
            contents.close()
        writer = cls.__new__(cls)
        try:
            writer._start(place, lock, commit_bytes)
            writer._renew(config)
        except BaseException:
            lock.release()
            raise
        return writer, restored

    def _renew(self, config: Mapping[str, Any] | None) -> None:
        """Forget how the run ended, and take over a new configuration."""
        changes: dict[str, Any] = {"summary": {}} if self._head["summary"] else {}
        if config is not None and config_digest(config) != config_digest(self._head["config"]):
            attributes = {**self._head["attributes"], "config_sha256": config_digest(config)}
            attributes |= {"device": config["device"]} if "device" in config else {}
            changes |= {"config": dict(config), "attributes": attributes}
        if changes:
            self._amend(changes)

    def _amend(self, changes: Mapping[str, Any]) -> None:
        head = {**self._head, **changes}
        with disk.writing(self._place.parts, self._hint):
            disk.write_json(self._place.parts / "header.json", head)
        self._head = head

    @property
    def path(self) -> Path:
        """The finished file."""
        return self._place.file

    @property
    def rows(self) -> frozenset[str]:
        """Names of the data sets that this run has beside those of all."""
        return frozenset(self._buffer.known)

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes of the run, with those that the writer added."""
        return dict(self._head["attributes"])

    def scalars(self, stream: str, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Append one row of numbers to ``/scalars/<stream>``.

        A metric may appear at any time; it is NaN (float32) where it is missing. A slash in its
        name becomes a dot.

        Raises:
            RecipeError: a name cannot be stored.
        """
        self._check_open()
        row = {metric_name(name): float(value) for name, value in values.items()}
        self._buffer.add_scalars(stream, (int(step), int(epoch), time.time(), row))
        self._grew(step)

    def snapshot(
        self,
        step: int,
        epoch: int,
        activity: Mapping[str, Any],
        params: Mapping[str, Mapping[str, float]] | None = None,
        learning: Mapping[str, Mapping[str, float]] | None = None,
        rows: Mapping[str, Any] | None = None,
    ) -> None:
        """Append one look at the network.

        Args:
            step: training step.
            epoch: training epoch.
            activity: by layer; rate layers ``[probe, *units]``, spiking layers spikes
                ``[probe, time, *units]``. A layer that is left out is NaN.
            params: by parameter: norm, update_norm, sparsity.
            learning: by layer: cos_to_bp, angle_deg and the like.
            rows: of the data sets that this run has beside those of all, by name; NaN where one
                is left out.

        Raises:
            RecipeError: a layer is not known, or its activity has another shape.
        """
        self._check_open()
        probe, known = self._buffer.probe, self._buffer.layers
        layers = {}
        for name, values in activity.items():
            if probe is None or name not in known:
                why = "the run has no probe" if probe is None else f"known: {', '.join(known)}"
                raise RecipeError(f"snapshot: layer {name!r} cannot be recorded ({why})")
            layers[name] = record(name, values, known[name], len(probe))
        numbers = {**flattened("params", params or {}), **flattened("learning", learning or {})}
        further = {
            name: self._buffer.further(name, values) for name, values in (rows or {}).items()
        }
        row = Snapshot(int(step), int(epoch), time.time(), layers, numbers, further)
        self._buffer.add_snapshot(row)
        self._grew(step)

    def _grew(self, step: int) -> None:
        self._step = int(step)
        if self._buffer.nbytes >= self._commit_bytes:
            self.commit(step)

    def commit(
        self,
        step: int,
        checkpoint: tuple[Mapping[str, Tensor], Mapping[str, Any]] | None = None,
        lasting: bool = False,
    ) -> None:
        """Put all waiting rows, and a checkpoint of the same step, on disk.

        If it fails, the rows wait for the next attempt and earlier commits are untouched.

        Args:
            step: of the training.
            checkpoint: tensors and meta.
            lasting: keep the checkpoint when there are later ones, and in the finished file.

        Raises:
            RecipeError: the checkpoint holds what cannot be stored.
            OutputError: the disk is full or cannot be written.
        """
        self._check_open()
        self._catch_up()
        if not self._buffer and checkpoint is None:
            return
        number = self._commits[-1].segment + 1 if self._commits else 0
        name, digest, files = kept_checkpoints.files_of(
            self._place, self._commits, int(step), number, checkpoint
        )
        data = segment_bytes(self._buffer.arrays(first_snapshot=self._rows[STEPS]))
        rows = self._rows + Counter(self._buffer.rows())
        path = segment_path(self._place, number)
        commit = Commit(
            segment=number,
            step=int(step),
            rank=0,
            unix_ns=time.time_ns(),
            file=path.name,
            sha256=hashlib.sha256(data).hexdigest(),
            size=len(data),
            rows=dict(rows),
            checkpoint=name,
            checkpoint_sha256=digest,
            lasting=lasting,
        )
        with disk.writing(self._place.parts, self._hint):
            for target, content in [*files, (path, data)]:
                disk.write_bytes(target, content)
            disk.append_line(self._place.parts / "commits.jsonl", commit.line())
        self._confirm(commit)
        kept_checkpoints.prune(self._place, self._commits)

    def _confirm(self, commit: Commit) -> None:
        """Forget the rows that a commit has put on disk."""
        rows = Counter(commit.rows)
        self._buffer.drop(rows - self._rows)
        self._commits.append(commit)
        self._rows = rows
        self._written += len(commit.line().encode()) + 1

    def _catch_up(self) -> None:
        """Confirm a commit that Ctrl-C cut off between its line and the note of it in memory."""
        path = self._place.parts / "commits.jsonl"
        with disk.writing(path, self._hint):
            if path.stat().st_size != self._written:
                for commit in read_commits(path)[len(self._commits) :]:
                    self._confirm(commit)
                os.truncate(path, self._written)  # a line that is torn

    def summary(self, values: Mapping[str, Any]) -> None:
        """Keep what came out in the end, as JSON values, in ``/summary``."""
        self._check_open()
        text = to_json("summary", dict(values))
        self._amend({"summary": json.loads(text)})

    def close(self, status: Status = "completed") -> None:
        """Commit what waits and merge everything into the finished file; later calls do nothing.

        Raises:
            OutputError: the disk is full or cannot be written; the parts stay.
        """
        if self._closed:
            return
        try:
            self._end(status)
            pack_parts(self._place)
        finally:
            self._closed = True
            self._lock.release()

    def abandon(self, status: Status = "interrupted") -> None:
        """Commit what waits and leave the parts as they are, to be resumed; later calls do nothing.

        It never fails, because it is called when something else did.
        """
        if self._closed:
            return
        try:
            self._end(status)
        except BiogradError as error:
            log.debug("%s", error)  # whoever called this is already reporting an error
        finally:
            self._closed = True
            self._lock.release()

    def _end(self, status: Status) -> None:
        if status not in STATUSES:
            raise RecipeError(f"status {status!r} is not one of {', '.join(STATUSES)}")
        self.commit(self._step)
        with disk.writing(self._place.parts, self._hint):
            disk.write_json(self._place.parts / "status.json", {"status": status})

    @property
    def _hint(self) -> str:
        """How to go on after an error: only a run with a checkpoint can be resumed."""
        if any(commit.checkpoint for commit in self._commits):
            return f"`biograd resume {self._place.file}`"
        return f"start again with `--force`; {self._place.file} holds no checkpoint yet"

    def _check_open(self) -> None:
        if self._closed:
            raise BiogradError(f"{self.path}: the run is closed; go on with {self._hint}")

    def __enter__(self) -> RunWriter:
        """Return the writer; leaving closes it."""
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Close with the status that the exception, if any, calls for."""
        if error is None:
            self.close()
            return
        try:
            self.close("interrupted" if isinstance(error, KeyboardInterrupt) else "crashed")
        except OutputError as second:  # the first error says more
            log.warning("%s", second)
