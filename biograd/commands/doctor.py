"""``biograd doctor``: is everything here that a training needs, and does it fit together?

Why every import runs in a process of its own: a package that is broken may bring the process down,
and the time that an import takes depends on what was imported before it.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from biograd import __version__
from biograd.commands.options import Answer, command
from biograd.display.columns import columns, duration
from biograd.process.memory import keep_memory
from biograd.process.switches import KEEP_MEMORY

REQUIRED = {
    "torch": "torch",
    "snntorch": "snntorch",
    "brian2": "brian2",
    "numpy": "numpy",
    "h5py": "h5py",
    "click": "click",
    "rich": "rich.progress",
    "platformdirs": "platformdirs",
    "safetensors": "safetensors.torch",
    "scikit-learn": "sklearn.datasets",
    "matplotlib": "matplotlib.pyplot",
    "scipy": "scipy.stats",
    "sympy": "sympy",
}
"""What has to be installed, by the name to install and the module to import."""

EXTRAS = {
    "sweep": ("submitit", "optuna"),
    "dask": ("distributed", "dask-jobqueue"),
    "nir": ("nir",),
    "xarray": ("xarray", "h5netcdf", "pandas"),
    "neo": ("neo",),
    "nwb": ("pynwb",),
    "tensorboard": ("tensorboard",),
    "fast": ("numba",),
    "environments": ("gymnasium",),
    "analysis": ("elephant", "rsatoolbox"),
}
"""What may be installed besides, by the name of the extra."""

MARKS = {"ok": "ok", "note": "-", "fail": "FAIL"}
IMPORT_LIMIT_SECONDS = 120
BRIAN2 = "from biograd.brian.import_brian2 import import_brian2; import_brian2()"
"""Imports Brian2 without the preferences of the current folder, which it would run."""
CUDA_PROBE = """
import json, torch
found = torch.cuda.is_available()
print(json.dumps(torch.cuda.get_device_name(0) if found else ""))
"""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        status: "ok"; "note": it works, but know this; "fail": training will not work.
        seconds: how long its import took.
    """

    group: Literal["packages", "machine", "extras"]
    name: str
    status: Literal["ok", "note", "fail"]
    text: str
    version: str = ""
    seconds: float | None = None


@command("doctor")
def doctor() -> Answer:
    """Check this machine and its packages; exit code 3 if something required fails."""
    findings = [*packages(), *machine(), *extras()]
    failed = [finding.name for finding in findings if finding.status == "fail"]
    record = {
        "biograd": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "ok": not failed,
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }
    failure = f"doctor: not in order: {', '.join(failed)}" if failed else ""
    return Answer(record, _text(findings), failure)


def packages() -> list[Finding]:
    """Import every required package, each in a process of its own."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(_package, REQUIRED, REQUIRED.values()))


def _package(name: str, module: str) -> Finding:
    version = installed(name)
    if not version:
        return Finding("packages", name, "fail", f"not installed: pip install {name}")
    begin = time.perf_counter()
    problem, _ = _python(BRIAN2 if name == "brian2" else f"import {module}")
    seconds = round(time.perf_counter() - begin, 2)
    if name == "brian2" and problem:
        problem = clash(version, installed("numpy")) or problem
    status: Literal["ok", "fail"] = "fail" if problem else "ok"
    text = problem or f"imports in {duration(seconds)}"
    return Finding("packages", name, status, text, version, seconds)


def clash(brian2: str, numpy: str) -> str:
    """Return what to do if these versions of Brian2 and NumPy do not go together.

    >>> clash("2.9.0", "2.4.1")
    "Brian2 2.9.0 does not import with NumPy 2.4.1: pip install 'numpy<2.4'"
    >>> clash("2.9.0", "2.3.5"), clash("2.10.1", "2.4.1")
    ('', '')
    """
    if _parts(brian2) >= (2, 10) or _parts(numpy) < (2, 4):
        return ""
    return f"Brian2 {brian2} does not import with NumPy {numpy}: pip install 'numpy<2.4'"


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def machine() -> list[Finding]:
    """Look at the accelerator, the compiler and the folders that are written to."""
    return [_cuda(), _compiler(), _memory(), *map(_writable, folders())]


def _cuda() -> Finding:
    problem, output = _python(CUDA_PROBE)
    device = "" if problem else json.loads(output.splitlines()[-1])
    if device:
        return Finding("machine", "CUDA", "ok", device)
    return Finding("machine", "CUDA", "note", "not available: training runs on the CPU")


def _compiler() -> Finding:
    given = os.environ.get("CXX", "").split(" ")[0]
    wanted = [given] if given else ["c++", "g++", "clang++", "cl"]
    found = next((path for name in wanted if (path := shutil.which(name))), None)
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if found and header.is_file() and installed("cython"):
        return Finding("machine", "compiler", "ok", f"{found}: Brian2 compiles with Cython")
    lack = f"no C++ compiler {given} (CXX)" if given else "no C++ compiler"
    lack = "no Python headers or no Cython" if found else lack
    return Finding("machine", "compiler", "note", f"{lack}: Brian2 runs on NumPy, more slowly")


def _memory() -> Finding:
    if keep_memory():
        text = f"freed memory is kept for the next step ({KEEP_MEMORY}=0: given back)"
        return Finding("machine", "memory", "ok", text)
    text = f"freed memory is given back: not glibc, {KEEP_MEMORY}=0, or MALLOC_... is set"
    return Finding("machine", "memory", "note", text)


def folders() -> list[tuple[str, Path]]:
    """Return the folders outside the project that are written to."""
    import platformdirs

    return [
        ("data folder", platformdirs.user_cache_path("biograd", appauthor=False)),
        ("Brian2 cache", Path("~/.cython/brian_extensions").expanduser()),
    ]


def _writable(folder: tuple[str, Path]) -> Finding:
    name, path = folder
    existing = next(place for place in (path, *path.parents) if place.exists())
    if os.access(existing, os.W_OK | os.X_OK) and existing.is_dir():
        return Finding("machine", name, "ok", f"{path}: can be written")
    return Finding("machine", name, "note", f"{path}: cannot be written")


def extras() -> list[Finding]:
    """Say which extras are installed, and how to install the others."""
    return [_extra(name, packages) for name, packages in EXTRAS.items()]


def _extra(name: str, packages: Iterable[str]) -> Finding:
    versions = {package: installed(package) for package in packages}
    if all(versions.values()):
        text = ", ".join(f"{package} {version}" for package, version in versions.items())
        return Finding("extras", name, "ok", text)
    return Finding("extras", name, "note", f"not installed: pip install 'biograd[{name}]'")


def installed(package: str) -> str:
    """Return the version of an installed package, or nothing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _python(source: str) -> tuple[str, str]:
    """Run ``source`` in a fresh interpreter; return the last line of its error, and its output."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", source],
            capture_output=True,
            text=True,
            timeout=IMPORT_LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"takes more than {IMPORT_LIMIT_SECONDS} s to import", ""
    if done.returncode == 0:
        return "", done.stdout
    lines = done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"]
    return f"does not import: {lines[-1]}", ""


def _text(findings: list[Finding]) -> str:
    head = f"biograd {__version__}, Python {platform.python_version()}, {platform.platform()}"
    rows: list[list[str]] = []
    for group in ("packages", "machine", "extras"):
        rows += [[""], [group.upper()]]
        rows += [
            [f"  {MARKS[finding.status]}", finding.name, finding.version, finding.text]
            for finding in findings
            if finding.group == group
        ]
    return f"{head}\n{columns(rows)}"
