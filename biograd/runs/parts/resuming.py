"""Bring a run that stopped back to its last checkpoint, so that training can go on from there."""

from __future__ import annotations

import dataclasses
from typing import Any

from biograd.errors import RunFileError
from biograd.runs import checkpoint, storage, stored_arrays
from biograd.runs.contents import Commit, Contents, read_parts, segment_path
from biograd.runs.parts.folder import digest, header, lay_out, settle_in
from biograd.runs.parts.merge import merge
from biograd.runs.parts.segments import Sources
from biograd.runs.storage import RunPaths


def rewind(place: RunPaths) -> checkpoint.Checkpoint:
    """Drop from an owned parts folder what came after its last good checkpoint; return that.

    A damaged checkpoint or segment is passed over if a checkpoint before it is whole.

    Raises:
        RunFileError: no checkpoint is whole.
        OutputError: the folder cannot be written.
    """
    commits = read_parts(place).commits
    kept, restored = _last_good(place, commits)
    lines = [commit.line() + "\n" for commit in commits[:kept]]
    with storage.writing(place.parts, f"`biograd resume {place.file}`"):
        storage.write_bytes(place.parts / "commits.jsonl", "".join(lines).encode())
        _sweep(place, commits[:kept])
    return restored


def _last_good(place: RunPaths, commits: list[Commit]) -> tuple[int, checkpoint.Checkpoint]:
    whole = _whole_segments(place, commits)
    problem = f"{place.parts}: holds no checkpoint to go on from; train again with --force"
    cause: RunFileError | None = None
    for kept in range(whole, 0, -1):
        commit = commits[kept - 1]
        if commit.checkpoint is not None:
            path = place.parts / "checkpoints" / commit.checkpoint
            try:
                return kept, checkpoint.load(path, commit.checkpoint_sha256)
            except RunFileError as error:
                cause = cause or error
    raise RunFileError(str(cause) if cause else problem) from cause


def _whole_segments(place: RunPaths, commits: list[Commit]) -> int:
    """Return how many segments, from the first on, are what was committed."""
    for number, commit in enumerate(commits):
        path = segment_path(place, commit.segment)
        if not path.is_file() or digest(path) != commit.sha256:
            return number
    return len(commits)


def _sweep(place: RunPaths, commits: list[Commit]) -> None:
    """Delete what no kept commit names."""
    names = {commit.checkpoint for commit in commits}
    wanted = {segment_path(place, commit.segment) for commit in commits}
    for name in names - {None}:
        wanted.update(checkpoint.files(place.parts / "checkpoints" / str(name)))
    for folder in ("segments", "checkpoints"):
        for path in (place.parts / folder).iterdir():
            if path not in wanted:
                storage.remove(path)
    for path in (place.parts / "status.json", *place.parts.glob("*.tmp"), place.temporary):
        storage.remove(path)


def unpack(contents: Contents) -> tuple[storage.Lock, checkpoint.Checkpoint]:
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
    last = contents.commits[-1]
    body, text = packed_checkpoint(contents, last)
    restored = checkpoint.from_bytes(body, text, f"{place.file}: checkpoint {last.checkpoint}")
    with storage.writing(place.parts, f"`biograd resume {place.file}`"):
        folder = lay_out(place, _continued(contents, last.segment), contents.probe)
        target = folder / "segments" / segment_path(place, last.segment).name
        with stored_arrays.create(target) as output:
            merge(Sources(file=file), output, contents.layers, limits=last.rows)
        checkpoint.save_bytes(folder / "checkpoints" / str(last.checkpoint), body, text)
        size = target.stat().st_size
        commit = dataclasses.replace(last, file=target.name, sha256=digest(target), size=size)
        storage.append_line(folder / "commits.jsonl", commit.line())
        return settle_in(place), restored


def packed_checkpoint(contents: Contents, commit: Commit) -> tuple[bytes, bytes]:
    """Return the bytes of a checkpoint of a finished file.

    Raises:
        RunFileError: they cannot be read.
    """
    name = f"checkpoints/{commit.checkpoint}"
    try:
        group = contents.sources.file[name]  # type: ignore[index]
        return group["tensors"][()].tobytes(), bytes(group["meta"][()])
    except (KeyError, OSError) as error:
        raise RunFileError(f"{contents.place.file}: {name} cannot be read ({error})") from error


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
        history=[row for row in contents.history if row[0] < segment],
    )


def take_over(place: RunPaths) -> tuple[storage.Lock, checkpoint.Checkpoint]:
    """Own the parts folder of a run that stopped and rewind it; give the lock back on failure."""
    lock = storage.own(place)
    try:
        return lock, rewind(place)
    except BaseException:
        lock.release()
        raise
