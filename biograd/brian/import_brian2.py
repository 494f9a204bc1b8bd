"""Brian2, imported late (it takes a second) and quietly."""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import logging
import os
import stat
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

log = logging.getLogger(__name__)
NO_NEWS = ("resolution_conflict", "failed_compile_test", "codegen_fallback")
"""What Brian2 warns of and is no news: recipes are checked, and the rest is said in one line."""
LEAVINGS = ("logging.file_log", "logging.save_script")
"""Preferences by which Brian2 writes temporary files, which a kill would leave."""
_heard: ContextVar[list[logging.LogRecord] | None] = ContextVar("heard", default=None)


class _Guard(importlib.abc.MetaPathFinder):
    """Lets Brian2 read the preferences in the user's home, not those where one happens to stand.

    On import it would evaluate the values in ``./brian_preferences`` as Python.
    """

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """Return how the module of preferences is loaded: as ever, with another reader."""
        if name != "brian2.core.preferences":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        loader: Any = None if spec is None else spec.loader
        if loader is not None:
            loader.exec_module = functools.partial(self._load, loader.exec_module)
        return spec

    def _load(self, load: Callable[[ModuleType], None], module: ModuleType) -> None:
        load(module)
        self.preferences: Any = module.BrianGlobalPreferences
        self.reader = self.preferences.read_preference_file
        self.preferences.read_preference_file = lambda own, file: self._read(own, file)

    def _read(self, preferences: Any, file: Any) -> None:
        if os.path.isabs(file):
            for name in LEAVINGS:  # what the user's file says comes after
                preferences[name] = False
            self.reader(preferences, file)
        elif os.path.exists(file):
            log.warning(
                f"./{file} is not read: Brian2 would run what stands in it; set brian2.prefs in "
                "your own code, or move it to ~/.brian/user_preferences"
            )

    def __enter__(self) -> None:
        sys.meta_path.insert(0, self)

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)
        if hasattr(self, "preferences"):
            self.preferences.read_preference_file = self.reader


@functools.cache
def import_brian2() -> ModuleType:
    """Return Brian2, without the deprecation warnings of its own dependencies.

    It also says which integration method it chose, and that a group was thrown away, when a model
    is only checked; neither is news to the user of a population.  And it would ask for a report of
    every error that ends a script, as if that were its own.  A file ``brian_preferences`` of the
    current folder is not read; that in the user's home is.
    """
    hook = None if "brian2" in sys.modules else sys.excepthook
    plots = logging.getLogger("matplotlib")  # Brian2 imports it, and it wants a folder for itself
    level = plots.level
    plots.setLevel(logging.ERROR)
    with warnings.catch_warnings(), _Guard():
        warnings.simplefilter("ignore", DeprecationWarning)
        import brian2
    plots.setLevel(level)
    sys.excepthook = hook or sys.excepthook
    for name in ("method_choice", "unused_brian_object"):
        brian2.BrianLogger.suppress_name(name)
    brian2.BrianLogger.console_handler.addFilter(_heed)
    if sys.platform == "linux":
        _without_names()
    return brian2


def _without_names() -> None:
    """Let Brian2 keep the words of compilers in files that no name leads to, nor a kill leaves."""
    from brian2.utils.logger import std_silent

    for stream in ("stdout", "stderr"):
        if getattr(std_silent, f"dest_{stream}") is None:
            file = tempfile.TemporaryFile("w", prefix="biograd-")  # noqa: SIM115 (as long as we)
            setattr(std_silent, f"dest_{stream}", file)
            setattr(std_silent, f"dest_fname_{stream}", f"/proc/self/fd/{file.fileno()}")


def _heed(record: logging.LogRecord) -> bool:
    """Return whether Brian2 shows a record on the terminal: not while somebody listens."""
    heard = _heard.get()
    if heard is not None:
        heard.append(record)
    return heard is None


@contextmanager
def listening() -> Iterator[list[logging.LogRecord]]:
    """Collect what Brian2 says meanwhile in this thread; it is not shown."""
    import_brian2()
    heard: list[logging.LogRecord] = []
    token = _heard.set(heard)
    try:
        yield heard
    finally:
        _heard.reset(token)


@contextmanager
def one_line(where: str) -> Iterator[None]:
    """Turn what Brian2 warns of into one line each, said once.

    Args:
        where: what it is about, for the line.
    """
    with listening() as heard:
        yield
    for record in heard:
        if record.levelno >= logging.WARNING and not record.name.endswith(NO_NEWS):
            _warn(f"{where}: Brian2 says: {' '.join(record.getMessage().split())}")


@functools.cache
def _warn(line: str) -> None:
    log.warning(line)


def choose_target() -> None:
    """Let Brian2 choose how its code runs; where it cannot compile, one line says so, once."""
    if import_brian2().prefs.codegen.target == "auto":
        _compiles()


@functools.cache
def _compiles() -> bool:
    from brian2.devices.device import auto_target

    folder, other = _cache()
    with listening():  # ten lines, if there is no compiler
        compiles: bool = auto_target().class_name != "numpy"
    if compiles and folder != other:
        log.warning(
            f"{folder} cannot be written: Brian2 keeps its compiled code in {other} (set "
            "CYTHON_CACHE_DIR to choose)"
        )
    elif not other:
        log.warning(
            f"{folder} cannot be written: Brian2's populations run on NumPy, which is slower: set "
            "CYTHON_CACHE_DIR to a folder for compiled code"
        )
    elif not compiles:
        log.warning(
            "Brian2 finds no C++ compiler that works: its populations run on NumPy, which is "
            "slower (see `biograd doctor`)"
        )
    return compiles


def _cache() -> tuple[str, str]:
    """Return where Brian2 would keep compiled code, and where it does; "": nowhere."""
    from brian2.codegen.runtime.cython_rt.extension_manager import get_cython_cache_dir

    folder = os.path.expanduser(get_cython_cache_dir() or "")
    if not folder or _writable(folder):  # without a folder there is no Cython
        return folder, folder or "."
    try:
        other = _temporary()
    except OSError:
        return folder, ""
    import_brian2().prefs.codegen.runtime.cython.cache_dir = other
    return folder, other


def _writable(folder: str) -> bool:
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _temporary() -> str:
    """Return a folder for temporary files that nobody else can write to: code is loaded of it."""
    own = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"biograd-brian2-{own}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == own and not found.st_mode & 0o022:
        return str(folder)
    return tempfile.mkdtemp(prefix="biograd-brian2-")
