"""Bring a run that stopped back to its last checkpoint, so that training can go on from there."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

from biograd import disk
from biograd.disk.hdf5_streams import create
from biograd.errors import RunFileError
from biograd.runs import checkpoint
from biograd.runs.contents import (
    LOST_SEAL,
    Commit,
    Contents,
    read_parts,
    seal_is_due,
    segment_path,
)
from biograd.runs.parts.buffer import segment_bytes
from biograd.runs.parts.folder import header, laid_out
from biograd.runs.parts.merge import merge
from biograd.runs.parts.seal import is_sealed
from biograd.runs.parts.segments import Sources, whole
from biograd.runs.parts.settling import settle
from biograd.runs.storage import RunPaths, own, own_files

Trial = Callable[[checkpoint.Checkpoint], None]
"""Called with a checkpoint before anything on the disk is changed; may raise."""


def rewind(place: RunPaths, tried: Trial) -> checkpoint.Checkpoint:
    """Drop from an owned parts folder what came after its last good checkpoint; return that.

    A damaged checkpoint or segment is passed over if a checkpoint before it is whole.

    Raises:
        RunFileError: no checkpoint is whole.
        OutputError: the folder cannot be written.
    """
    contents = read_parts(place)
    commits = contents.commits
    kept, restored = _last_good(place, commits, _whole_segments(commits, contents.sources))
    tried(restored)
    lines = [commit.line() + "\n" for commit in commits[:kept]]
    with disk.writing(place.parts, f"`biograd resume {place.file}`"):
        disk.write_bytes(place.parts / "commits.jsonl", "".join(lines).encode())
        _sweep(place, commits[:kept])
    return restored


def _last_good(
    place: RunPaths, commits: list[Commit], segments: int
) -> tuple[int, checkpoint.Checkpoint]:
    problem = f"{place.parts}: holds no checkpoint to go on from; train again with --force"
    cause: RunFileError | None = None
    for kept in range(segments, 0, -1):
        commit = commits[kept - 1]
        if commit.checkpoint is not None:
            path = place.parts / "checkpoints" / commit.checkpoint
            try:
                return kept, checkpoint.load(path, commit.checkpoint_sha256)
            except RunFileError as error:
                cause = cause or error
    raise RunFileError(str(cause) if cause else problem) from cause


def _whole_segments(commits: list[Commit], sources: Sources) -> int:
    """Return how many segments, from the first on, are what was committed."""
    for number, segment in enumerate(sources.segments):
        try:
            if not whole(segment):
                return number
        except OSError:
            return number
    return len(commits)


def _sweep(place: RunPaths, commits: list[Commit]) -> None:
    """Delete, of a run's own files, what no kept commit names."""
    wanted = {place.parts / name for name in ("header.json", "commits.jsonl", "probe.h5")}
    wanted |= {segment_path(place, commit.segment) for commit in commits}
    for name in {commit.checkpoint for commit in commits} - {None}:
        wanted.update(checkpoint.files(place.parts / "checkpoints" / str(name)))
    for path in own_files(place.parts):
        if path not in wanted:
            disk.remove(path)


def unpack(contents: Contents, tried: Trial) -> tuple[disk.Lock, checkpoint.Checkpoint]:
    """Take a finished file apart into a parts folder that ends at its checkpoint.

    The finished file stays until the parts are packed again. Returns the lock of the new folder
    and the checkpoint.

    Raises:
        RunFileError: the file has no checkpoint to go on from, or it is damaged.
        OutputError: the disk is full or cannot be written.
    """
    place, file = contents.place, contents.sources.file
    if not contents.commits or file is None:
        raise RunFileError(f"{place.file}: holds no checkpoint to go on from; train again")
    # what goes on from a file reads all of it, and seals it anew
    if not is_sealed(place.file) and seal_is_due(contents.attributes):
        raise RunFileError(f"{place.file}: {LOST_SEAL}")
    last = contents.commits[-1]
    body, text = packed_checkpoint(contents, last)
    restored = checkpoint.from_bytes(body, text, f"{place.file}: checkpoint {last.checkpoint}")
    tried(restored)
    head = _continued(contents, last.segment)
    settle(place)
    with (
        disk.writing(place.parts, f"`biograd resume {place.file}`"),
        laid_out(place, head, contents.probe) as lock,
    ):
        for earlier in contents.commits[:-1]:
            _carry(contents, place, earlier)
        target = segment_path(place, last.segment)
        with create(target) as output:
            merge(contents.sources, output, last.rows)
        checkpoint.save_bytes(place.parts / "checkpoints" / str(last.checkpoint), body, text)
        size = target.stat().st_size
        commit = dataclasses.replace(last, file=target.name, sha256=disk.sha256(target), size=size)
        disk.append_line(place.parts / "commits.jsonl", commit.line())
    return lock, restored


def _carry(contents: Contents, place: RunPaths, commit: Commit) -> None:
    """Take over an earlier checkpoint that lasts, with a segment of no rows: the last has all."""
    body, text = packed_checkpoint(contents, commit)
    checkpoint.save_bytes(place.parts / "checkpoints" / str(commit.checkpoint), body, text)
    target, data = segment_path(place, commit.segment), segment_bytes({})
    disk.write_bytes(target, data)
    digest = hashlib.sha256(data).hexdigest()
    kept = dataclasses.replace(commit, file=target.name, sha256=digest, size=len(data), rows={})
    disk.append_line(place.parts / "commits.jsonl", kept.line())


def packed_checkpoint(contents: Contents, commit: Commit) -> tuple[bytes, bytes]:
    """Return the bytes of a checkpoint of a finished file.

    Raises:
        RunFileError: they cannot be read.
    """
    name, file = f"checkpoints/{commit.checkpoint}", contents.sources.file
    assert file is not None
    return file.array(f"{name}/tensors", "u", 1).tobytes(), file.text(f"{name}/meta")


def _continued(contents: Contents, segment: int) -> dict[str, Any]:
    mine = ("format", "format_version", "status", "finished_at", "parts_id")
    return header(
        attributes={k: v for k, v in contents.attributes.items() if k not in mine},
        config=contents.config,
        environment=contents.environment,
        layers=contents.layers,
        probe=contents.probe,
        hyperparameters=contents.hyperparameters,
        credit=contents.credit,
        code=contents.code,
        recording=contents.recording,
        history=[row for row in contents.history if row[0] < segment],
    )


def take_over(place: RunPaths, tried: Trial) -> tuple[disk.Lock, checkpoint.Checkpoint]:
    """Own the parts folder of a run that stopped and rewind it; give the lock back on failure."""
    settle(place)
    lock = own(place)
    try:
        return lock, rewind(place, tried)
    except BaseException:
        lock.release()
        raise
