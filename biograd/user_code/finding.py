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
from collections.abc import Iterator, Mapping, Sequence
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


def named_metrics(given: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    """Return metrics by name, of text ``NAME`` or ``[NAME=]FILE.py:NAME`` what it names.

    Raises:
        RecipeError: two have one name.
    """
    if isinstance(given, Mapping):
        return {str(name): one for name, one in given.items()}
    found = dict[str, Any]()
    for text in [given] if isinstance(given, str) else given:
        left, equals, right = text.partition("=")
        aliased = bool(equals) and left.isidentifier()
        code = right if aliased else text
        name = left if aliased else short(code) if is_named(code) else code
        if name in found:
            raise RecipeError(f"metrics: two are called {name}: give one a name, NAME={code}")
        found[name] = code
    return found


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
        home: the folder from which the other files' names go out.
    """

    code: UserCode
    texts: Mapping[str, str]
    path: Path | None
    home: Path | None = None


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
    path, file = path.resolve(), place.endswith(".py")
    top = "" if file else place.partition(".")[0]
    version, main = (_version(top) if top else ""), (path.name if file else place)
    # of a single file those beside it, of a package its own; one that is installed has a version
    depth = 0 if file else len(place.split(".")) - (path.name != "__init__.py")
    home = path.parents[min(depth, len(path.parents) - 1)]
    installed = not file and (_installed(top) or "site-packages" in path.parts)
    known = {} if installed else _beside(path, home, top if depth else "")
    texts, digests = dict[str, str](), dict[str, str]()
    try:
        for name, each in {main: path, **known}.items():
            if each.stat().st_size > LONGEST:
                raise RecipeError(f"{said}: {each} is longer than {LONGEST >> 20} MB: no code")
            content = each.read_bytes()
            digests[name] = hashlib.sha256(content).hexdigest()
            texts[name] = _decoded(content)
    except OSError as error:
        raise RecipeError(f"{said}: {path} cannot be read: {error.strerror}") from error
    if sum(map(len, texts.values())) > LONGEST:
        texts = {}
    texts = {name: text for name, text in texts.items() if text}
    rest = {name: digest for name, digest in digests.items() if name != main}
    code = UserCode("", main, digests[main], rest, top, version)
    return Located(code, texts, path, home)


def _decoded(content: bytes) -> str:
    """Return the text of a file, to the byte if it is in UTF-8; of one that is no text, ""."""
    with contextlib.suppress(UnicodeError):
        return content.decode()
    with contextlib.suppress(SyntaxError, UnicodeError):
        return importlib.util.decode_source(content)
    return ""


def _version(package: str) -> str:
    return _installed(package) or str(getattr(sys.modules.get(package), "__version__", ""))


def _installed(package: str) -> str:
    """Return the version of the distribution of a package, "" if it is of none."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return ""


def _beside(path: Path, folder: Path, top: str = "") -> dict[str, Path]:
    """Return the files of a folder that a file imports, and those that these do, by their names.

    Args:
        top: the package that it belongs to, whose files alone are looked at; "": none.
    """
    found, waiting = dict[str, Path](), [path]
    while waiting and len(found) < MOST:
        asking = waiting.pop()
        package = asking.relative_to(folder).parts[:-1] if top else ()
        for name in _imported(asking, package):
            if top and name.partition(".")[0] != top:
                continue
            stem = folder.joinpath(*name.split("."))
            for file in (stem.with_suffix(".py"), stem / "__init__.py"):
                known = file.relative_to(folder).as_posix()
                if file.is_file() and known not in found and file != path:
                    found[known] = file
                    waiting.append(file)
    return found


def _imported(path: Path, package: Sequence[str] = ()) -> set[str]:
    """Return the names that the text of a file imports; of one that is no Python, none.

    Args:
        package: in which it lies, from which relative names go out; of none they are passed over.
    """
    try:
        nodes = list(ast.walk(ast.parse(path.read_bytes())))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {".".join(package)} if package else set()  # which Python runs first
    for node in nodes:
        if not isinstance(node, ast.ImportFrom) or node.level > len(package):
            continue
        above = package[: len(package) - node.level + 1] if node.level else ()
        module = ".".join([*above, *([node.module] if node.module else [])])
        names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
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
