"""Make the parts folder of a run, so that it appears with everything that it must hold.

Nothing is overwritten unless asked, and what is replaced goes only when the new header is safe.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from biograd.errors import RecipeError
from biograd.runs import storage
from biograd.runs.contents import settle
from biograd.runs.layout import FORMAT, VERSION, LayerInfo, Probe, plain_attributes, to_json
from biograd.runs.storage import RunPaths
from biograd.runs.stored_arrays import create, write_probe


def header(
    *,
    attributes: Mapping[str, Any],
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    layers: Mapping[str, LayerInfo],
    probe: Probe | None,
    hyperparameters: Mapping[str, Any] | None = None,
    credit: Mapping[str, Any] | None = None,
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
        "layers": {name: layer.as_json() for name, layer in layers.items()},
        "gap_ms": None if probe is None else float(probe.gap_ms),
        "history": history or [],
    }
    plain: dict[str, Any] = {name: json.loads(to_json(name, v)) for name, v in values.items()}
    return plain


def lay_out(place: RunPaths, head: Mapping[str, Any], probe: Probe | None) -> Path:
    """Make the folder that will become the parts folder, and return it."""
    storage.remove(place.fresh)
    for name in ("segments", "checkpoints"):
        (place.fresh / name).mkdir(parents=True)
    if probe is not None:
        with create(place.fresh / "probe.h5") as output:
            write_probe(output, probe)
    storage.write_bytes(place.fresh / "commits.jsonl", b"")
    storage.write_json(place.fresh / "header.json", head)
    return place.fresh


def settle_in(place: RunPaths) -> storage.Lock:
    """Let the new parts folder take its name, owned by this process from the first moment.

    Raises:
        RecipeError: another process was faster.
    """
    lock = storage.Lock(place.fresh / "lock")
    lock.take()
    storage.sync_folder(place.fresh / "segments")
    storage.sync_folder(place.fresh)
    try:
        os.rename(place.fresh, place.parts)
    except OSError as error:
        lock.release()
        if place.parts.exists():
            raise RecipeError(f"{place.parts}: another process has just begun this run") from error
        raise
    storage.sync_folder(place.file.parent)
    return lock


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def begin(
    place: RunPaths, head: Mapping[str, Any], probe: Probe | None, force: bool
) -> storage.Lock:
    """Make the parts folder and own it; what it replaces goes when it is complete.

    Raises:
        RecipeError: a run lies there and ``force`` is not set, or it is still being written.
        OutputError: the disk is full or cannot be written.
    """
    settle(place)
    refuse_existing(place, force)
    previous = storage.own(place) if place.parts.is_dir() else None
    try:
        with storage.writing(place.parts, "start again"):
            lay_out(place, head, probe)
            if place.parts.exists():
                storage.remove(place.aside)
                os.rename(place.parts, place.aside)
            lock = settle_in(place)
            storage.remove(place.file)
            storage.remove(place.temporary)
            storage.remove(place.aside)
    finally:
        if previous is not None:
            previous.release()
    return lock


def refuse_existing(place: RunPaths, force: bool) -> None:
    """Refuse to write where something lies already.

    Raises:
        RecipeError: a run lies there and ``force`` is not set, or a folder is in the way.
    """
    if place.file.is_dir() or (place.parts.exists() and not place.parts.is_dir()):
        raise RecipeError(f"{place.file}: a folder is in the way; choose another path")
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
