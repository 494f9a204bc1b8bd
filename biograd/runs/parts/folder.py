"""Make the parts folder of a run, which becomes a run when everything that it must hold is there.

Nothing is overwritten unless asked, and what is replaced goes only when the new header is safe.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from biograd import disk
from biograd.disk.hdf5_streams import create
from biograd.errors import RecipeError
from biograd.runs.layout import FORMAT, VERSION, LayerInfo, Probe, plain_attributes, to_json
from biograd.runs.parts.settling import settle
from biograd.runs.storage import FOLDERS, RunPaths, clear, holds_run, own
from biograd.runs.stored_arrays import write_probe


def header(
    *,
    attributes: Mapping[str, Any],
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    layers: Mapping[str, LayerInfo],
    probe: Probe | None,
    hyperparameters: Mapping[str, Any] | None = None,
    credit: Mapping[str, Any] | None = None,
    code: Mapping[str, Any] | None = None,
    recording: Mapping[str, Any] | None = None,
    history: list[list[int]] | None = None,
) -> dict[str, Any]:
    """Return what ``header.json`` holds.

    Raises:
        RecipeError: the configuration or another part is not JSON.
    """
    values = {
        "format": FORMAT,
        "format_version": VERSION,
        "parts_id": uuid.uuid4().hex,
        "attributes": dict(attributes),
        "config": dict(config),
        "environment": dict(environment),
        "hyperparameters": dict(hyperparameters or {}),
        "summary": {},
        "credit": dict(credit or {}),
        "code": dict(code or {}),
        "recording": dict(recording or {}),
        "layers": {name: layer.as_json() for name, layer in layers.items()},
        "gap_ms": None if probe is None else float(probe.gap_ms),
        "history": history or [],
    }
    plain: dict[str, Any] = {name: json.loads(to_json(name, v)) for name, v in values.items()}
    return plain


@contextlib.contextmanager
def laid_out(place: RunPaths, head: Mapping[str, Any], probe: Probe | None) -> Iterator[disk.Lock]:
    """Make a parts folder, which is a run as soon as the context ends; yield the lock of it.

    Raises:
        RecipeError: another process was faster.
    """
    parts = place.parts
    parts.parent.mkdir(parents=True, exist_ok=True)
    try:
        parts.mkdir()
    except FileExistsError as error:
        raise RecipeError(f"{parts}: another process has just begun this run") from error
    lock: disk.Lock | None = None
    try:
        lock = disk.Lock(parts / "lock")
        lock.take()
        for name in FOLDERS:
            (parts / name).mkdir()
        if probe is not None:
            with create(parts / "probe.h5") as output:
                write_probe(output, probe)
        disk.write_bytes(parts / "commits.jsonl", b"")
        yield lock
        disk.write_json(parts / "header.json", head)
        disk.sync_folder(parts.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            clear(parts)
        if lock is not None:
            lock.release()
        raise


def begin(place: RunPaths, head: Mapping[str, Any], probe: Probe | None, force: bool) -> disk.Lock:
    """Make the parts folder and own it; what it replaces goes when it is complete.

    Raises:
        RecipeError: a run lies there and ``force`` is not set, or it is still being written.
        OutputError: the disk is full or cannot be written.
    """
    settle(place)
    refuse_existing(place, force)
    previous = own(place) if holds_run(place.parts) else None
    try:
        with disk.writing(place.parts, "start again"), _aside(place, previous is not None) as old:
            with laid_out(place, head, probe) as lock:
                pass
            disk.remove(place.file)
            if old is not None:
                clear(old)
    finally:
        if previous is not None:
            previous.release()
    return lock


@contextlib.contextmanager
def _aside(place: RunPaths, needed: bool) -> Iterator[Path | None]:
    """Move a parts folder aside while another takes its name; move it back on an error."""
    if not needed:
        yield None
        return
    old = place.another()
    os.rename(place.parts, old)
    try:
        yield old
    except BaseException:
        if not place.parts.exists():
            os.rename(old, place.parts)
        raise


def refuse_existing(place: RunPaths, force: bool) -> None:
    """Refuse to write where something lies already.

    Raises:
        RecipeError: a run lies there and ``force`` is not set, or a folder is in the way.
    """
    taken = place.parts.exists() and not holds_run(place.parts)
    if place.file.is_dir() or taken:
        where = place.parts if taken else place.file
        raise RecipeError(f"{where}: a folder is in the way; choose another path")
    if force:
        return
    if place.parts.exists():
        raise RecipeError(
            f"{place.parts}: a run that is not finished lies here; go on with"
            f" `biograd resume {place.file}` or replace it with --force"
        )
    if place.file.exists():
        raise RecipeError(f"{place.file}: exists; choose another path or replace it with --force")


def complete(
    attributes: Mapping[str, Any], config: Mapping[str, Any], environment: Mapping[str, Any]
) -> dict[str, Any]:
    """Add to the attributes what follows from the configuration and the environment."""
    versions = environment.get("versions") or {}
    git = environment.get("git") or {}
    derived = {
        "run_id": uuid.uuid4().hex,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "config_sha256": config_digest(config),
        "git_commit": git.get("commit"),
        "git_dirty": git.get("dirty"),
        "hostname": environment.get("hostname"),
        "device": environment.get("device"),
    }
    for name in ("biograd", "torch", "numpy", "python"):
        derived[f"{name}_version"] = versions.get(name)
    return plain_attributes({**derived, **attributes})


def config_digest(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a configuration, whatever the order of its keys."""
    return hashlib.sha256(to_json("config", _sorted(config)).encode()).hexdigest()


def _sorted(value: Any) -> Any:
    """Return nested mappings with sorted keys, so that equal configurations have one digest."""
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list | tuple) else value
