"""Run files, finished and in parts, damaged as bytes, as HDF5, as JSON and as folders."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np

from biograd.analyses.of_run import ANALYSES
from biograd.plots.run_figures import FIGURES

from .harness import Target
from .mutators import VALUES, damaged_bytes, damaged_text

SETTINGS = [
    "dataset.training_examples=48",
    "dataset.test_examples=12",
    "network.hidden=[6]",
    "encoding.duration_ms=4",
    "training.batch_size=16",
    "training.probe=4",
    "recording.stimuli=12",
    "recording.gradients=true",
    "recording.variables=['potential']",
]
SEAL = re.compile(rb"\nbiograd sha256 [0-9a-f]{64}\n\Z")
RUN = "{folder}/run.h5"
TABLES = ("nwb", "csv", "netcdf", "tensorboard")
SVG = ("--format", "svg")


def prepare(folder: Path) -> None:
    """Write a finished run and the parts of one that stopped, and a file that is no run's."""
    import biograd
    from biograd.runs.writer import RunWriter

    (folder / "canary").mkdir()
    (folder / "canary" / "mine.txt").write_text("mine")
    (folder / "canary" / "run.h5").write_text("mine")
    for name in ("run.h5", "other.h5"):
        biograd.train("spiking", "digits", epochs=1, path=folder / name, settings=SETTINGS).close()
    shutil.copy(folder / "run.h5", folder / "canary" / "good.h5")
    writer, _ = RunWriter.resume(folder / "other.h5")
    writer.abandon()
    (folder / "other.h5").unlink()


def mutate(stream: Random, folder: Path) -> str:
    """Damage one of the two forms of a run, which keeps the name ``run.h5``."""
    if stream.random() < 0.6:
        shutil.rmtree(folder / "other.h5.parts")
        return _file(stream, folder / "run.h5", canary=folder / "canary")
    (folder / "run.h5").unlink()
    (folder / "other.h5.parts").rename(folder / "run.h5.parts")
    return _parts(stream, folder / "run.h5.parts")


def _file(stream: Random, path: Path, canary: Path) -> str:
    """Damage a finished file; half of those that are changed carry a digest all the same."""
    if stream.random() < 0.25:
        data, how = damaged_bytes(stream, path.read_bytes())
        path.write_bytes(data)
    else:
        how = _hdf5(stream, path)
    if stream.random() < 0.5:
        data = SEAL.sub(b"", path.read_bytes())
        seal = f"\nbiograd sha256 {hashlib.sha256(data).hexdigest()}\n".encode()
        path.write_bytes(data + seal if stream.random() < 0.7 else data)
        how += ", sealed again"
    return f"file: {how}"


def _nodes(file: h5py.File) -> list[str]:
    found: list[str] = []
    file.visit(found.append)
    return sorted(found)


def _hdf5(stream: Random, path: Path) -> str:
    """Damage one node of an HDF5 file by HDF5 itself."""
    how = stream.choice(NODES)
    with h5py.File(path, "r+", libver=("earliest", "v110")) as file:
        names = _nodes(file)
        texts = [n for n in names if isinstance(file[n], h5py.Dataset) and not file[n].shape]
        if how in (_text, _checkpoint) and texts:
            name = stream.choice(texts)
        else:
            name = stream.choice(names)
        said = how(stream, file, name)
    return f"{how.__name__.strip('_')} /{name} {said}"


def _delete(stream: Random, file: h5py.File, name: str) -> str:
    del file[name]
    return ""


def _rename(stream: Random, file: h5py.File, name: str) -> str:
    new = stream.choice(["x", "step", "ü", "\x1b[2J", "..", "=1"])
    file.move(name, f"{name.rpartition('/')[0]}/{new}{stream.randrange(9)}")
    return new


def _kind(stream: Random, file: h5py.File, name: str) -> str:
    group = isinstance(file[name], h5py.Group)
    del file[name]
    if group:
        file[name] = stream.choice([np.arange(3), np.bytes_(b"text"), 1.5])
    else:
        file.create_group(name)
    return "group to data" if group else "data to group"


DTYPES: list[Any] = [
    "f8", "f2", "i1", "u8", "i8", "S5", "c8", "?", [("a", "i4"), ("b", "f4")],
    h5py.string_dtype(), h5py.vlen_dtype("i4"), h5py.ref_dtype, h5py.opaque_dtype("M8[s]"),
    h5py.enum_dtype({"a": 1, "b": 2}), (np.float32, (3,)),
]  # fmt: skip


def _dtype(stream: Random, file: h5py.File, name: str) -> str:
    shape = getattr(file[name], "shape", (2,))
    del file[name]
    dtype = stream.choice(DTYPES)
    file.create_dataset(name, shape, dtype)
    return str(dtype)


def _shape(stream: Random, file: h5py.File, name: str) -> str:
    item = file[name]
    if not isinstance(item, h5py.Dataset):
        return _kind(stream, file, name)
    shape, dtype = item.shape, item.dtype
    others: list[Any] = [(), (0,), (1,), (3, 0), (2, 2), (7,) * 5, None, (*shape, 1), (1, *shape)]
    if shape:
        others += [(shape[0] + 1, *shape[1:]), (max(0, shape[0] - 1), *shape[1:])]
    new = stream.choice(others)
    del file[name]
    file[name] = h5py.Empty(dtype) if new is None else np.ones(new, dtype)
    return f"{shape} to {new}"


def _huge(stream: Random, file: h5py.File, name: str) -> str:
    dtype = getattr(file[name], "dtype", np.dtype("f4"))
    rows = stream.choice([2**42, 2**34, 2**31, 10**7])
    del file[name]
    kind = stream.choice(["chunks", "contiguous", "rows of a table", "one large chunk"])
    if kind == "chunks":
        file.create_dataset(name, (rows,), dtype, chunks=(2**16,), compression="gzip")
    elif kind == "contiguous":
        file.create_dataset(name, (rows,), dtype)
    elif kind == "rows of a table":
        file.create_dataset(name, (rows, 3, 3), dtype, chunks=(2**10, 3, 3))
    else:
        rows = min(2**26, (2**32 - 1) // max(1, dtype.itemsize))  # HDF5 takes no larger chunk
        file.create_dataset(name, (rows,), dtype, chunks=(rows,), compression="gzip")
    return f"{kind} {rows}"


def _bomb(stream: Random, file: h5py.File, name: str) -> str:
    dtype = getattr(file[name], "dtype", np.dtype("f4"))
    del file[name]
    chunk, count = 2**20, stream.choice([10, 1000])
    item = file.create_dataset(name, (chunk * count,), dtype, chunks=(chunk,), compression="gzip")
    packed = zlib.compress(bytes(chunk * dtype.itemsize), 9)
    for number in range(count):
        item.id.write_direct_chunk((number * chunk,), packed)
    return f"{count} chunks"


def _link(stream: Random, file: h5py.File, name: str) -> str:
    links: list[Any] = [
        h5py.SoftLink("/" + name), h5py.SoftLink("/config"), h5py.SoftLink("/nowhere"),
        h5py.ExternalLink("canary/run.h5", "/"), h5py.ExternalLink("run.h5", "/" + name),
        h5py.ExternalLink("/etc/passwd", "/x"), file["/"],
    ]  # fmt: skip
    link = stream.choice(links)
    del file[name]
    file[name] = link
    return type(link).__name__


def _virtual(stream: Random, file: h5py.File, name: str) -> str:
    item = file[name]
    shape = getattr(item, "shape", None) or (4,)
    dtype = getattr(item, "dtype", np.dtype("f4"))
    del file[name]
    if stream.random() < 0.5:
        layout = h5py.VirtualLayout(shape, dtype)
        layout[:] = h5py.VirtualSource("canary/run.h5", "x", shape)
        file.create_virtual_dataset(name, layout)
        return "virtual"
    file.create_dataset(name, shape, dtype, external=[("canary/mine.txt", 0, h5py.h5f.UNLIMITED)])
    return "stored elsewhere"


def _values(stream: Random, file: h5py.File, name: str) -> str:
    item = file[name]
    if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "iuf" or not item.size:
        return _attribute(stream, file, name)
    values = item[()].ravel()
    spot = stream.randrange(values.size)
    extreme = [0, 1] if item.dtype.kind == "u" else [0, 1, -1]
    if item.dtype.kind == "f":
        extreme += [float("nan"), float("inf"), 1e30]
    else:
        extreme.append(np.iinfo(item.dtype).max)
    values[spot] = stream.choice(extreme)
    item[...] = values.reshape(item.shape)
    return f"[{spot}] = {values[spot]}"


ATTRIBUTES: list[Any] = [
    *[value for value in VALUES if isinstance(value, int | float | str)],
    np.arange(5), np.zeros((2, 2)), np.array([b"a", b"b"]), np.zeros(3, "c8"), np.bytes_(b"\xff"),
    h5py.Empty("f4"), np.zeros(7000), np.array(["a", "b"], dtype=h5py.string_dtype()),
]  # fmt: skip


def _attribute(stream: Random, file: h5py.File, name: str) -> str:
    owners = [n for n in ["/", *_nodes(file)] if len(file[n].attrs)]
    owner = stream.choice(owners)
    key = stream.choice(sorted(file[owner].attrs))
    if stream.random() < 0.2:
        del file[owner].attrs[key]
        return f"without {owner}@{key}"
    value = stream.choice(ATTRIBUTES)
    try:
        file[owner].attrs[key] = value
    except (ValueError, TypeError, OverflowError, OSError):
        file[owner].attrs[key] = -7
    return f"{owner}@{key} = {str(value)[:30]!r}"


def _text(stream: Random, file: h5py.File, name: str) -> str:
    item = file[name]
    if not isinstance(item, h5py.Dataset) or item.dtype.kind != "S" or item.shape:
        name = stream.choice(["config", "environment", "hyperparameters", "summary"])
        item = file.get(name)
    text, how = damaged_text(stream, bytes(item[()]))
    del file[name]
    file.create_dataset(name, data=np.bytes_(text or b" "))
    return f"{name}: {how}"


def _checkpoint(stream: Random, file: h5py.File, name: str) -> str:
    """Replace a checkpoint by one with a right digest and wrong content."""
    step = next(iter(file["checkpoints"]))
    group = file["checkpoints"][step]
    body, text, how = _other_checkpoint(
        stream, bytes(group["tensors"][()]), bytes(group["meta"][()])
    )
    del group["tensors"], group["meta"]
    group["tensors"] = np.frombuffer(body, np.uint8)
    group["meta"] = np.bytes_(text)
    group.attrs["sha256"] = hashlib.sha256(text).hexdigest()
    return how


def _other_checkpoint(stream: Random, body: bytes, text: bytes) -> tuple[bytes, bytes, str]:
    import safetensors.torch
    import torch

    envelope = json.loads(text)
    if stream.random() < 0.4:
        changed, how = damaged_text(stream, json.dumps(envelope["meta"]).encode())
        try:
            envelope["meta"] = json.loads(changed)
        except (ValueError, RecursionError):
            envelope["meta"] = 3
        return body, json.dumps(envelope).encode(), f"meta: {how}"
    tensors = safetensors.torch.load(body)
    name = stream.choice(sorted(tensors))
    value = tensors.pop(name)
    how = stream.choice(["lost", "shape", "dtype", "empty", "larger", "renamed", "nan", "scalar"])
    new = {
        "shape": lambda: value.reshape(-1, 1),
        "dtype": lambda: value.to(stream.choice([torch.int8, torch.bool, torch.float64])),
        "empty": lambda: value.new_zeros(0),
        "larger": lambda: value.new_zeros(1000, 3),
        "nan": lambda: torch.full(value.shape, float("nan")),
        "scalar": lambda: value.new_ones(()),
    }
    if how == "renamed":
        tensors[f"{name}.x"] = value
    elif how != "lost":
        tensors[name] = new[how]()
    body = safetensors.torch.save(tensors)
    if stream.random() < 0.1:  # a header that promises more than there is
        body = (2**40).to_bytes(8, "little") + body[8:]
    envelope["sha256"], envelope["size"] = hashlib.sha256(body).hexdigest(), len(body)
    return body, json.dumps(envelope).encode(), f"tensor {name}: {how}"


NODES: list[Callable[[Random, h5py.File, str], str]] = [
    _delete, _rename, _kind, _dtype, _shape, _huge, _bomb, _link, _virtual, _values, _attribute,
    _attribute, _text, _text, _checkpoint,
]  # fmt: skip


def _parts(stream: Random, parts: Path) -> str:
    """Damage one file of a parts folder, or what kind of file it is."""
    path = stream.choice(sorted(path for path in parts.rglob("*") if path.is_file()))
    where = f"parts: {path.relative_to(parts)}"
    draw = stream.random()
    if draw < 0.15:
        return f"{where} {_replaced(stream, path, parts)}"
    if path.suffix in (".json", ".jsonl") and draw < 0.7:
        text, how = damaged_text(stream, path.read_bytes() or b"{}")
        path.write_bytes(text + b"\n" * stream.randrange(2))
        return f"{where} {how}"
    if path.suffix == ".h5" and draw < 0.8:
        how = _hdf5_of_rows(stream, path)
    elif path.suffix == ".safetensors" and draw < 0.8:
        other = path.with_suffix(".json")
        body, text, how = _other_checkpoint(stream, path.read_bytes(), other.read_bytes())
        path.write_bytes(body)
        other.write_bytes(text)
        _recommit(parts, "checkpoint_sha256", hashlib.sha256(text).hexdigest())
    else:
        data, how = damaged_bytes(stream, path.read_bytes())
        path.write_bytes(data)
    if path.parent.name == "segments" and stream.random() < 0.8:
        _recommit(parts, "sha256", hashlib.sha256(path.read_bytes()).hexdigest())
        _recommit(parts, "size", path.stat().st_size)
        how += ", committed"
    return f"{where} {how}"


def _hdf5_of_rows(stream: Random, path: Path) -> str:
    while True:
        try:
            return _hdf5(stream, path)
        except (KeyError, IndexError, AttributeError, StopIteration, TypeError):
            continue  # a damage for which a segment has no node


def _recommit(parts: Path, key: str, value: Any) -> None:
    lines = [json.loads(line) for line in (parts / "commits.jsonl").read_text().splitlines()]
    lines[-1][key] = value
    (parts / "commits.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _replaced(stream: Random, path: Path, parts: Path) -> str:
    """Put something else in a file's place: a link, a folder, a pipe, a hole, or nothing."""
    canary = parts.parent / "canary"
    how = stream.choice(["link", "folder link", "folder", "pipe", "hole", "lost", "dangling"])
    if how == "folder link" and path.parent != parts:
        path.parent.rename(parts.parent / "moved")
        path.parent.symlink_to(parts.parent / "moved")
        return how
    path.unlink()
    if how == "link":
        path.symlink_to(canary / "mine.txt")
    elif how == "dangling":
        path.symlink_to(canary / "nothing")
    elif how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "hole":
        with open(path, "wb") as file:
            file.truncate(2**40)
    return how


TARGET = Target(
    prepare=prepare,
    mutate=mutate,
    commands=(
        ("inspect", RUN),
        ("inspect", RUN, "--json"),
        ("probe", RUN, "--draws", "2", "--examples", "2"),
        ("export", RUN, "--format", "sonata", "-o", "{out}/spikes.h5"),
        ("export", RUN, "--format", "nir", "-o", "{out}/network.nir"),
        ("validate", RUN),
        ("watch", RUN, "--once"),
        *(("export", RUN, "--format", kind, "-o", "{out}/tables") for kind in TABLES),
        ("report", RUN, "-o", "{out}/page.html"),
        ("report", RUN, "{folder}/canary/good.h5", "-o", "{out}/page.html"),
        *(("plot", RUN, "--what", name, "-o", "{out}/figure", *SVG) for name in FIGURES),
        *(("analyse", RUN, "--what", name) for name in ANALYSES),
        ("reproduce", RUN),
        ("resume", RUN, "--epochs", "2", "--quiet"),
    ),
    writers=("analyse", "resume"),
    growing=".parts",
    drawn=9,
)
