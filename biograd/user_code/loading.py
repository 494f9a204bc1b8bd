"""Code of the user's, executed: only what was typed in this very command or call comes here."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.abc
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from biograd.errors import BiogradError, RecipeError, nearest
from biograd.user_code.finding import Located, find, searched, words


@dataclasses.dataclass(frozen=True)
class Loaded(Located):
    """Code that was found and executed: ``thing`` is the class or function."""

    thing: Any = None


def load(text: str, option: str = "--model", wanted: type | None = None) -> Loaded:
    """Return code that a text names, its file executed if it was not before.

    Only text that was typed in this very command or call may come here.

    Args:
        wanted: the class of which a file without a name must define one.

    Raises:
        RecipeError: no such file or name, or the file fails: one line with file and line.
    """
    found = find(text, option)
    said = f"{option} {text}"
    module = _module(found, said)
    name = found.code.name or _only(module, wanted, text, said)
    if not hasattr(module, name):
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise RecipeError(f"{said}: {found.code.place} has no {name}: {nearest(name, known)}")
    code = dataclasses.replace(found.code, name=name)
    return Loaded(code, found.texts, found.path, found.home, getattr(module, name))


@contextlib.contextmanager
def named(what: str) -> Iterator[None]:
    """Say in one line where code of the user's failed: file, line and error.

    What does not come from a file of theirs passes as it is.

    Raises:
        RecipeError: it failed; ``what`` opens the message.
    """
    try:
        yield
    except RecipeError as error:
        place = None if error.__cause__ is None else where(error.__cause__)
        if place is None or place in str(error):
            raise
        raise type(error)(f"{error} ({place})") from error
    except BiogradError:
        raise
    except (Exception, SystemExit) as error:
        place = where(error)
        if place is None:
            raise
        raise RecipeError(f"{what}: {place}: {words(error)}") from error


def where(error: BaseException) -> str | None:
    """Return the last line of a file of the user's that an error passed, ``net.py, line 3``."""
    if isinstance(error, SyntaxError) and error.filename in _FILES:
        return f"{Path(error.filename).name}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename in _FILES]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}" if own else None


_MODULES: dict[tuple[str, str], ModuleType] = {}
"""Files that were executed, by path and digest."""
_FILES: dict[str, str] = {}
"""Files of the user's by path, with the digest that they had when they were first used."""


def _module(found: Located, said: str) -> ModuleType:
    """Return the module of code; a file is executed once for each text that it has had."""
    assert found.path is not None
    _check_fresh(found, said)
    with named(said):
        if not found.code.place.endswith(".py"):
            with searched(Path.cwd()):
                return _import(found.code.place, said)
        key = (str(found.path), found.code.sha256)
        if key not in _MODULES:
            _MODULES[key] = _execute(found)
        return _MODULES[key]


def _check_fresh(found: Located, said: str) -> None:
    """Refuse files that Python has imported in this process and that are others by now."""
    assert found.path is not None
    folder, code = found.home or found.path.parent, found.code
    own = {str(folder / name): digest for name, digest in code.files.items()}
    if not code.place.endswith(".py"):
        own[str(found.path)] = code.sha256
    for path, digest in own.items():
        if _FILES.setdefault(path, digest) != digest:
            raise RecipeError(
                f"{said}: {Path(path).name} has changed since this process imported it: start "
                "Python again"
            )
    _FILES[str(found.path)] = code.sha256


class _Exactly(importlib.abc.SourceLoader):
    """Compiles the text of a file as it is now, where Python might take an older compilation."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get_filename(self, fullname: str) -> str:
        """Return the file that messages name."""
        return str(self.path)

    def get_data(self, path: str | bytes) -> bytes:
        """Return the bytes of the file."""
        return self.path.read_bytes()


def _execute(found: Located) -> ModuleType:
    path = found.path
    assert path is not None
    name = f"biograd_user_{re.sub(r'[^0-9A-Za-z]', '_', path.stem)}_{found.code.sha256[:12]}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_Exactly(path))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look there
    try:
        with searched(path.parent):
            spec.loader.exec_module(module)
    except ImportError as error:
        del sys.modules[name]
        if "relative import" not in str(error):
            raise
        raise ImportError(
            f"{error}: a file that is named alone has none: write from NAME import ... of a file "
            "beside it, or name the module, package.module:NAME, from the package's folder"
        ).with_traceback(error.__traceback__) from error
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import(place: str, said: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        if where(error) is not None:
            raise
        raise RecipeError(f"{said}: {place} cannot be imported: {words(error)}") from error


def _only(module: ModuleType, wanted: type | None, text: str, said: str) -> str:
    """Return the name of the only class of a kind that a module defines.

    Raises:
        RecipeError: it defines none, or several.
    """
    own = [
        name
        for name, value in vars(module).items()
        if wanted and isinstance(value, type) and issubclass(value, wanted)
        and value.__module__ == module.__name__
    ]  # fmt: skip
    if len(own) == 1:
        return own[0]
    what = f"one of {', '.join(f'{text}:{name}' for name in own)}" if own else f"{text}:NAME"
    raise RecipeError(f"{said}: say which: {what}")


def called(make: Callable[..., Any], arguments: Mapping[str, Any], said: str) -> Any:
    """Call a class or function of the user's with the arguments of ``--model-arg``.

    Raises:
        RecipeError: it does not take them, needs others, or fails: one line with file and line.
    """
    _check_arguments(make, arguments, said)
    with named(said):
        return make(**arguments)


def _check_arguments(make: Callable[..., Any], arguments: Mapping[str, Any], said: str) -> None:
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):  # of a builtin: it says so itself
        return
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = [p.name for p in named]
    free = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for name in arguments:
        if name not in known and not free:
            raise RecipeError(f"{said}: takes no argument {name!r}: {nearest(name, known)}")
    for p in parameters:
        if p.kind is p.POSITIONAL_ONLY and p.default is p.empty:
            raise RecipeError(f"{said}: its argument {p.name!r} has no name that can be given")
    for p in named:
        if p.default is p.empty and p.name not in arguments:
            raise RecipeError(f"{said}: needs the argument {p.name!r}: --model-arg {p.name}=VALUE")
