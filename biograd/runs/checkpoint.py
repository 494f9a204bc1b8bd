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

from biograd.disk import write_bytes
from biograd.errors import RecipeError, RunFileError

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
    try:
        envelope = json.loads(text)
        known = envelope["format"] == FORMAT
        version, digest, meta = (envelope[key] for key in ("format_version", "sha256", "meta"))
        newer = int(version.split(".")[0]) > int(VERSION.split(".")[0])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFileError(f"{where}: the JSON of the checkpoint is damaged ({error})") from error
    if not known or newer:
        raise RunFileError(f"{where}: checkpoint version {version} is not known; update biograd")
    if hashlib.sha256(body).hexdigest() != digest:
        raise RunFileError(f"{where}: the tensors of the checkpoint are damaged (digest differs)")
    try:
        return safetensors.torch.load(body), meta
    except safetensors.SafetensorError as error:
        raise RunFileError(f"{where}: the checkpoint cannot be read ({error})") from error


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
    try:
        body, text = (target.read_bytes() for target in files(path))
    except OSError as error:
        raise RunFileError(f"{path}: checkpoint cannot be read ({error.strerror})") from error
    if sha256 is not None and hashlib.sha256(text).hexdigest() != sha256:
        raise RunFileError(f"{path}: the checkpoint is damaged (digest differs)")
    return body, text
