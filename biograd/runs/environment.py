"""Where a run was made: versions, machine, command line, batch job and commit.

Nothing is imported to learn its version, and nothing secret is kept: of the process environment
only the variables of the batch system, without its access token.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from biograd.devices import VISIBLE
from biograd.process.switches import COMPILED, allowed

PACKAGES = ("biograd", "torch", "numpy", "brian2", "snntorch", "h5py")
SECRET = {"SLURM_JWT"}
BRIAN2 = (
    "core.default_float_dtype",
    "core.default_integer_dtype",
    "core.network.default_schedule",
    "legacy.refractory_timing",
    "codegen.target",
    "codegen.string_expression_target",
    "codegen.loop_invariant_optimisations",
    "codegen.generators.cpp.flush_denormals",
    "codegen.cpp.compiler",
    "codegen.cpp.define_macros",
    "codegen.cpp.extra_compile_args",
    "codegen.cpp.extra_compile_args_gcc",
    "codegen.cpp.extra_compile_args_msvc",
)
"""Preferences of Brian2 that change numbers."""


def environment(device: str | None = None, folder: Path | None = None) -> dict[str, Any]:
    """Return what a run file keeps of its surroundings, as plain JSON values.

    Args:
        device: the device that the run uses, such as ``cuda:0``.
        folder: where to look for a git commit; the current folder if None.
    """
    distributions = _distributions()
    versions = {name: distributions.get(name) for name in PACKAGES}
    versions["numba"] = distributions.get("numba") if allowed(COMPILED) else None
    return {
        "versions": {"python": platform.python_version(), **versions},
        "source": source(),
        "distributions": dict(distributions),
        "platform": platform.platform(),
        "hostname": socket.gethostname(),
        "argv": list(sys.argv),
        "slurm": _slurm(),
        "git": git_state(folder),
        "device": device_name(device),
        "visible_devices": os.environ.get(VISIBLE),
        "cpu": cpu_name(),
        "threads": _threads(),
        "brian2": preferences(),
    }


@functools.cache
def source() -> str:
    """Return the start of a SHA-256 digest of biograd's own code; "": it is in no files.

    Why: a version names a release; code between two of them may draw other random numbers.
    """
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    try:
        files = sorted(root.rglob("*.py"))
        for path in files:
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    except OSError:
        return ""
    return digest.hexdigest()[:16] if files else ""


def preferences() -> dict[str, Any]:
    """Return the preferences of Brian2 that change numbers, as JSON values; {}: it is not loaded.

    ``codegen.target = "auto"`` stands with what Brian2 chose, as far as it has chosen.
    """
    brian2 = sys.modules.get("brian2")
    if brian2 is None:
        return {}
    found = {name: brian2.prefs[name] for name in BRIAN2 if name in brian2.prefs}
    found = {n: v.__name__ if isinstance(v, type) else v for n, v in found.items()}
    chosen = getattr(sys.modules.get("brian2.devices.device"), "_auto_target", None)
    if found.get("codegen.target") == "auto" and chosen is not None:
        found["codegen.target"] = f"auto ({chosen.class_name})"
    return {n: v if isinstance(v, str | bool | list | None) else str(v) for n, v in found.items()}


def cpu_name() -> str:
    """Return the model of the processor, as far as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except (OSError, UnicodeDecodeError):
        pass
    return platform.processor() or platform.machine()


def _threads() -> int | None:
    """Return how many threads one operation of torch takes; None where torch is not loaded."""
    torch = sys.modules.get("torch")
    return None if torch is None else int(torch.get_num_threads())


def _slurm() -> dict[str, str]:
    found = {name: value for name, value in os.environ.items() if name.startswith("SLURM_")}
    return {name: found[name] for name in sorted(found) if name not in SECRET}


@functools.cache
def _distributions() -> dict[str, str]:
    found = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found[name.lower().replace("_", "-")] = distribution.version
    return dict(sorted(found.items()))


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """Return ``{"commit": ..., "dirty": ...}`` of a working tree, None if there is none."""
    if _git(folder, "rev-parse", "--is-inside-work-tree") != "true":
        return None
    changes = _git(folder, "status", "--porcelain")
    return {
        "commit": _git(folder, "rev-parse", "--verify", "HEAD"),
        "dirty": None if changes is None else bool(changes),
    }


def _git(folder: Path | None, *words: str) -> str | None:
    variables = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        answer = subprocess.run(
            ["git", *words],
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=3,
            check=True,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return answer.stdout.strip()


def device_name(device: str | None) -> str:
    """Return ``device`` with the name of the hardware, where it can be known without loading it."""
    torch = sys.modules.get("torch")
    if device and device.startswith("cuda") and torch is not None and torch.cuda.is_available():
        return f"{device} ({torch.cuda.get_device_name(device)})"
    machine = platform.processor() or platform.machine()
    return device if device and device != "cpu" else f"cpu ({machine})"
