"""Where code of the user's is, as text: nothing of a file is executed here."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from biograd.errors import RecipeError, brief, check_text, visible

NAMED = re.compile(r"(?P<place>[^\0\n]+\.py|[A-Za-z_]\w*(?:\.\w+)*):(?P<name>[A-Za-z_]\w*)")
"""How code is named: ``FILE.py:NAME`` or ``package.module:NAME``."""
LONGEST = 2**20
"""Bytes of source text that a run file keeps, of a file and those beside it that it imports."""
MOST = 64
"""Files beside a file of code that are looked at."""


def is_named(text: object) -> bool:
    """Return whether a text names code, or a file of code alone."""
    return isinstance(text, str) and bool(NAMED.fullmatch(text) or text.endswith(".py"))


def short(text: str) -> str:
    """Return what code is called for short: its name, without its place."""
    return text.rpartition(":")[2] if NAMED.fullmatch(text) else Path(text).stem


def whole(text: str, folder: Path | None = None) -> str:
    """Return the name of code with the full path of its file, seen from a folder or from here."""
    place, colon, name = text.rpartition(":") if NAMED.fullmatch(text) else (text, "", "")
    if not place.endswith(".py"):
        return text
    return f"{((folder or Path()) / Path(place).expanduser()).resolve()}{colon}{name}"


@dataclasses.dataclass(frozen=True)
class UserCode:
    """What a run file says of code that it needs: names and digests, nothing that can be run.

    Attributes:
        name: of the class or function.
        place: its file's name, or its ``package.module``.
        sha256: digest of the bytes of its file; "": there is none.
        files: the files beside it that it imports, each with its digest.
        package, version: of the package that it belongs to.
    """

    name: str
    place: str
    sha256: str = ""
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    package: str = ""
    version: str = ""

    def __str__(self) -> str:
        """Return its name as it is typed."""
        return f"{self.place}:{self.name}"

    def differs(self, now: UserCode) -> list[str]:
        """Return in what other code differs from this, a few words each."""
        found = []
        if self.name != now.name:
            found.append(f"{self.name}, now {now.name}")
        before = {self.place: self.sha256, **self.files}
        after = {self.place if self.sha256 else now.place: now.sha256, **now.files}
        for name in dict.fromkeys((*before, *after)):
            then, here = (digests.get(name, "") for digests in (before, after))
            if then != here:
                found.append(f"{name} of SHA-256 {_brief(then)}, now {_brief(here)}")
        if found and self.version != now.version:
            found.append(f"{self.package} {self.version}, now {now.version or 'of no version'}")
        return found


def _brief(digest: str) -> str:
    return f"{digest[:12]}…" if digest else "none"


@dataclasses.dataclass(frozen=True)
class Located:
    """Code that was found: what a run file says of it, the text of its files, and where it is.

    Attributes:
        texts: by the name of the file; empty if they are longer than ``LONGEST``, or no text.
        path: of the file; None: it has none.
    """

    code: UserCode
    texts: Mapping[str, str]
    path: Path | None


def find(text: str, option: str = "--model") -> Located:
    """Return where code is that a text names; nothing of the file is executed.

    Of a ``package.module`` the parent packages are imported, as Python does to find it.

    Raises:
        RecipeError: there is no such file or module.
    """
    check_text(text)
    match = NAMED.fullmatch(text)
    place, name = (match["place"], match["name"]) if match else (text, "")
    path = Path(place).expanduser() if place.endswith(".py") else _origin(place, text, option)
    if place.endswith(".py") and not path.is_file():
        raise RecipeError(f"{option} {text}: there is no file {place}")
    found = _read(path, place, f"{option} {text}")
    return dataclasses.replace(found, code=dataclasses.replace(found.code, name=name))


def of_object(thing: Any) -> Located:
    """Return where a class or function is that was given as an object; without a file, no text."""
    name = getattr(thing, "__qualname__", type(thing).__qualname__)
    home = getattr(thing, "__module__", type(thing).__module__) or ""
    with contextlib.suppress(TypeError, OSError, RecipeError):
        path = Path(inspect.getsourcefile(inspect.unwrap(thing)) or "")
        if path.is_file():
            place = home if "." in home and home != "__main__" else path.name
            found = _read(path.resolve(), place, name)
            return dataclasses.replace(found, code=dataclasses.replace(found.code, name=name))
    return Located(UserCode(name, f"<{home}>"), {}, None)  # nobody can type that


def words(error: BaseException) -> str:
    """Return type and message of an error, in one line."""
    if isinstance(error, SyntaxError):
        line = f": {error.text.strip()}" if error.text else ""
        return visible(brief(f"{type(error).__name__}: {error.msg}{line}"))
    if isinstance(error, SystemExit):
        return "it ends the program: put that under if __name__ == '__main__'"
    return visible(brief(f"{type(error).__name__}: {error}".rstrip(": ")))


def _origin(place: str, text: str, option: str) -> Path:
    """Return the file of ``package.module``."""
    try:
        with searched(Path.cwd()):
            spec = importlib.util.find_spec(place)
    except (Exception, SystemExit) as error:
        raise RecipeError(f"{option} {text}: {place} cannot be found: {words(error)}") from error
    if spec is None:
        raise RecipeError(f"{option} {text}: no module {place}, seen from {Path.cwd()}")
    if not spec.has_location or not spec.origin:
        raise RecipeError(f"{option} {text}: {place} is no file of code")
    return Path(spec.origin)


def _read(path: Path, place: str, said: str) -> Located:
    """Return what a file is, and those beside it that it imports."""
    alone = not place.endswith(".py")
    texts, digests = dict[str, str](), dict[str, str]()
    try:
        for name, file in ({place: path} if alone else _beside(path)).items():
            if file.stat().st_size > LONGEST:
                raise RecipeError(f"{said}: {file} is longer than {LONGEST >> 20} MB: no code")
            content = file.read_bytes()
            digests[name] = hashlib.sha256(content).hexdigest()
            texts[name] = _decoded(content)
    except OSError as error:
        raise RecipeError(f"{said}: {path} cannot be read: {error.strerror}") from error
    if sum(map(len, texts.values())) > LONGEST:
        texts = {}
    texts = {name: text for name, text in texts.items() if text}
    main = place if alone else path.name
    top = place.partition(".")[0] if alone else ""
    rest = {name: digest for name, digest in digests.items() if name != main}
    code = UserCode("", main, digests[main], rest, top, _version(top) if top else "")
    return Located(code, texts, path.resolve())


def _decoded(content: bytes) -> str:
    """Return the text of a file, to the byte if it is in UTF-8; of one that is no text, ""."""
    with contextlib.suppress(UnicodeError):
        return content.decode()
    with contextlib.suppress(SyntaxError, UnicodeError):
        return importlib.util.decode_source(content)
    return ""


def _version(package: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return str(getattr(sys.modules.get(package), "__version__", ""))


def _beside(path: Path) -> dict[str, Path]:
    """Return a file and those of its folder that it imports, theirs too, by their names."""
    folder, found = path.resolve().parent, {path.name: path.resolve()}
    waiting = [path.resolve()]
    while waiting and len(found) < MOST:
        for name in _imported(waiting.pop()):
            stem = folder.joinpath(*name.split("."))
            for file in (stem.with_suffix(".py"), stem / "__init__.py"):
                known = file.relative_to(folder).as_posix()
                if file.is_file() and known not in found:
                    found[known] = file
                    waiting.append(file)
    return found


def _imported(path: Path) -> set[str]:
    """Return the names that the text of a file imports; of one that is no Python, none."""
    try:
        nodes = list(ast.walk(ast.parse(path.read_bytes())))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {".".join(parts[:n]) for name in names if (parts := name.split("."))
            for n in range(1, len(parts) + 1)}  # fmt: skip


@contextlib.contextmanager
def searched(folder: Path) -> Iterator[None]:
    """Let Python look for modules in a folder first; later, for what is imported late, there last.

    Why not first for good: a file of the user's may have the name of one of Python's.
    """
    text = str(folder)
    sys.path.insert(0, text)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(text)
        if text not in sys.path:
            sys.path.append(text)
