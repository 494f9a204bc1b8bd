"""Checkpoints without pickle: tensors as safetensors, everything else as JSON beside them.

The JSON holds the digest of the tensors, so that the two files of a checkpoint can only be read
as the pair that was written, and the digest of the JSON stands for both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from biograd.disk import read_bytes, write_bytes
from biograd.errors import RecipeError, RunFileError
from biograd.runs.json_text import LIMIT, parse_object

FORMAT = "biograd-checkpoint"
VERSION = "1.0"

Checkpoint = tuple[dict[str, Tensor], dict[str, Any]]


def to_bytes(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """Return a checkpoint as the bytes of its safetensors file and of its JSON file.

    Tensors may be of any dense dtype and shape, on any device, views, or share memory; each is
    stored in full under its own name. Tuples in ``meta`` become lists.

    Raises:
        RecipeError: a tensor is sparse or quantised, or ``meta`` is not JSON.
    """
    body = safetensors.torch.save(_plain(tensors))
    envelope = {
        "format": FORMAT,
        "format_version": VERSION,
        "sha256": hashlib.sha256(body).hexdigest(),
        "size": len(body),
        "meta": meta,
    }
    try:
        text = json.dumps(envelope, ensure_ascii=False, default=_mapping)
    except (TypeError, ValueError) as error:
        message = f"checkpoint: meta cannot be written as JSON: {error}; put tensors into tensors"
        raise RecipeError(message) from error
    return body, text.encode()


def _mapping(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors on the CPU of which no two share memory."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise RecipeError(f"checkpoint: tensor {name} is not dense; make it dense first")
        value = tensor.detach().resolve_conj().resolve_neg().to("cpu").contiguous()
        storage = value.untyped_storage()
        whole = storage.nbytes() == value.numel() * value.element_size()
        if not whole or storage.data_ptr() in seen:
            value = value.clone(memory_format=torch.contiguous_format)
        seen.add(value.untyped_storage().data_ptr())
        plain[name] = value
    return plain


def from_bytes(body: bytes, text: bytes, where: str = "checkpoint") -> Checkpoint:
    """Return the tensors and the meta that :func:`to_bytes` wrote.

    Raises:
        RunFileError: the bytes are damaged, do not belong together, or are from a newer version.
    """
    envelope = _envelope(text, where)
    if hashlib.sha256(body).hexdigest() != envelope["sha256"]:
        raise RunFileError(f"{where}: the tensors of the checkpoint are damaged (digest differs)")
    try:
        return safetensors.torch.load(body), envelope["meta"]
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise RunFileError(f"{where}: the checkpoint cannot be read ({error})") from error


def _envelope(text: bytes, where: object) -> dict[str, Any]:
    """Return the JSON of a checkpoint.

    Raises:
        RunFileError: it is damaged, or from a newer version.
    """
    envelope = parse_object(text, f"{where}: the JSON of the checkpoint")
    if not isinstance(envelope.get("meta"), dict) or "sha256" not in envelope:
        raise RunFileError(f"{where}: the JSON of the checkpoint is damaged (no meta or digest)")
    version = envelope.get("format_version")
    major = version.partition(".")[0] if isinstance(version, str) else ""
    known = envelope.get("format") == FORMAT and major.isdecimal() and len(major) < 9
    if not known or int(major) > int(VERSION.partition(".")[0]):
        raise RunFileError(f"{where}: checkpoint version {version} is not known; update biograd")
    return envelope


def files(path: Path) -> tuple[Path, Path]:
    """Return the tensor file and the JSON file of the checkpoint ``path`` (without an ending)."""
    return path.with_name(path.name + ".safetensors"), path.with_name(path.name + ".json")


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    """Write ``path.safetensors`` and ``path.json``; return the digest that stands for both."""
    return save_bytes(path, *to_bytes(tensors, meta))


def save_bytes(path: Path, body: bytes, text: bytes) -> str:
    """Write the two files of a checkpoint; return the digest that stands for both."""
    for target, data in zip(files(path), (body, text), strict=True):
        write_bytes(target, data)
    return hashlib.sha256(text).hexdigest()


def load(path: Path, sha256: str | None = None) -> Checkpoint:
    """Read the checkpoint ``path`` (without an ending).

    Raises:
        RunFileError: it is missing or damaged, or its digest is not ``sha256``.
    """
    return from_bytes(*load_bytes(path, sha256), where=str(path))


def load_bytes(path: Path, sha256: str | None = None) -> tuple[bytes, bytes]:
    """Read the two files of a checkpoint without looking inside the tensors.

    Raises:
        RunFileError: one of them is missing, or the digest is not ``sha256``.
    """
    tensors, described = files(path)
    try:
        text = read_bytes(described, LIMIT)
        if sha256 is not None and hashlib.sha256(text).hexdigest() != sha256:
            raise RunFileError(f"{path}: the checkpoint is damaged (digest differs)")
        size = _envelope(text, path).get("size")
        if tensors.stat().st_size != size:
            raise RunFileError(f"{path}: the checkpoint is damaged (its size is not {size})")
        return read_bytes(tensors, size), text
    except OSError as error:
        raise RunFileError(f"{path}: checkpoint cannot be read ({error.strerror})") from error
