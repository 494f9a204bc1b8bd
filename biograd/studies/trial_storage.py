"""Where the trials of a search stand: a journal in its folder, or a storage of Optuna's by URL.

A storage may serve several processes, on several machines: those that ask for the same search do
its trials together.  Each says from time to time that its trial goes on; one of which nothing is
heard was killed, and is done again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from biograd import disk
from biograd.errors import BiogradError, MissingExtraError, RecipeError, brief

GRACE = 5
"""Seconds after which the journal's lock of a process that was killed no longer counts."""
PATIENCE, TRIES = 60.0, 10
"""Seconds for SQLite's lock, and tries at tables that another process makes at the same time."""
BEAT, SILENCE = 20.0, 300.0
"""Seconds between two signs of life of a trial, and after which one without them was killed."""


def optuna_here() -> Any:
    """Return Optuna, which says nothing but errors.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError(
            "--tune needs Optuna, which is not installed: pip install 'biograd[sweep]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@dataclasses.dataclass(frozen=True)
class SearchTrials:
    """The trials of one search.

    Attributes:
        study: of Optuna.
        shared: whether other processes may work on it at the same time.
    """

    study: Any
    shared: bool

    def complete(self) -> list[Any]:
        """Return the trials that have a value, in their order."""
        return [t for t in self.study.get_trials(deepcopy=False) if t.value is not None]

    def give_up_lost(self) -> None:
        """Let the trials of processes that were killed count as failed."""
        failed = optuna_here().trial.TrialState.FAIL
        for trial in self._running():
            if not self.shared or _lost(trial.user_attrs.get("by", {})):
                with contextlib.suppress(ValueError):  # another process was faster
                    self.study.tell(trial.number, state=failed)

    def _running(self) -> list[Any]:
        state = optuna_here().trial.TrialState.RUNNING
        return [t for t in self.study.get_trials(deepcopy=False) if t.state == state]

    def begun(self) -> int:
        """Return how many trials are complete, or under way."""
        return len(self.complete()) + len(self._running())

    def place(self, trial: Any) -> int:
        """Return how many trials that count were begun before one."""
        failed = optuna_here().trial.TrialState.FAIL
        known = self.study.get_trials(deepcopy=False)
        return sum(t.number < trial.number and t.state != failed for t in known)

    def drop(self, trial: Any) -> None:
        """Let a trial that is one too many count as failed."""
        self.study.tell(trial, state=optuna_here().trial.TrialState.FAIL)

    @contextlib.contextmanager
    def alive(self, trial: Any) -> Iterator[None]:
        """Give signs of life of a trial while the context is open."""
        if not self.shared:
            yield
            return
        ended = threading.Event()

        def sign() -> None:
            by = {"host": socket.gethostname(), "process": os.getpid(), "time": time.time()}
            trial.set_user_attr("by", by)

        def go_on() -> None:
            while not ended.wait(BEAT):
                with contextlib.suppress(Exception):  # the next one may get through
                    sign()

        sign()
        thread = threading.Thread(target=go_on, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _lost(by: dict[str, Any]) -> bool:
    """Return whether the process of a trial is gone."""
    if by.get("host") == socket.gethostname() and os.name == "posix":
        try:
            os.kill(int(by["process"]), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
    return bool(time.time() - float(by.get("time", 0.0)) > SILENCE) if by else False


def check_storage(url: str) -> str:
    """Return the URL of a storage, a file of SQLite's with its full path.

    Raises:
        RecipeError: it is none.
        MissingExtraError: Optuna is not installed.
    """
    optuna_here()
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        found = make_url(url)
        found.get_dialect()
    except (SQLAlchemyError, ValueError):
        raise RecipeError(
            f"--storage {_shown(url)}: is no URL of a database, such as sqlite:///search.db"
        ) from None
    if found.get_backend_name() == "sqlite":
        if found.database in (None, "", ":memory:"):
            raise RecipeError(f"--storage {_shown(url)}: names no file, as in sqlite:///search.db")
        found = found.set(database=str(Path(str(found.database)).expanduser().absolute()))
    return found.render_as_string(hide_password=False)


def _shown(url: str) -> str:
    """Return a URL without its password."""
    head, at, rest = url.rpartition("@")
    return f"{head.partition('//')[0]}//…@{rest}" if at else url


@contextlib.contextmanager
def reaching(url: str) -> Iterator[None]:
    """Say in one line what is wrong with a storage.

    Raises:
        BiogradError: it does not answer.
        RecipeError: its driver is not installed, or it is of another version of Optuna.
    """
    if not url:
        yield
        return
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    where = f"--storage {_shown(url)}"
    try:
        yield
    except ModuleNotFoundError as error:
        raise RecipeError(f"{where}: needs {error.name}: pip install it") from error
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ or getattr(error, "orig", None) or error
        raise BiogradError(f"{where}: {brief(str(cause))}") from error
    except RuntimeError as error:  # of Optuna's tables
        if "optuna" not in str(error).lower():
            raise
        raise RecipeError(f"{where}: {brief(str(error))}") from error


def open_trials(journal: Path, url: str, title: str, asked: str) -> SearchTrials:
    """Return the trials of a search, which must be what is asked for.

    Args:
        journal: where they stand if there is no storage.
        url: of a storage, "" for none.
        title: what people call the search.
        asked: what it is about, as JSON; the device in it does not count.

    Raises:
        RecipeError: the journal is of another search.
    """
    same = json.dumps(_anywhere(asked), sort_keys=True)
    if url:
        name = f"{title}-{hashlib.sha256(same.encode()).hexdigest()[:16]}"
        return SearchTrials(_study_at(url, name, same), True)
    if journal.is_symlink():
        raise RecipeError(f"{journal}: is a link, and nothing is written through links: remove it")
    journal.parent.mkdir(parents=True, exist_ok=True)
    backend = optuna_here().storages.journal
    lock = backend.JournalFileOpenLock(str(journal), grace_period=GRACE)
    with disk.writing(journal, "run the study again"), _readable(journal):
        storage = optuna_here().storages.JournalStorage(
            backend.JournalFileBackend(str(journal), lock)
        )
        study = _study(storage, "search", asked)
        known = _anywhere(study.user_attrs["asked"])
    if known != _anywhere(asked):
        raise RecipeError(
            f"{journal}: was made with other settings: give another folder, or delete the file"
        )
    return SearchTrials(study, False)


def _study_at(url: str, name: str, asked: str) -> Any:
    """Return the study of a database, which other processes may be making at this moment."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    patient = {"connect_args": {"timeout": PATIENCE}} if url.startswith("sqlite") else None
    for left in reversed(range(TRIES)):
        try:
            return _study(optuna_here().storages.RDBStorage(url, patient), name, asked)
        except (SQLAlchemyError, StorageInternalError) as error:
            if not left or not re.search("exist|unique|locked", str(error), re.IGNORECASE):
                raise
            time.sleep(0.2)
    raise AssertionError("unreachable")


def _study(storage: Any, name: str, asked: str) -> Any:
    """Return a study of Optuna, begun if it was not."""
    study = optuna_here().create_study(
        storage=storage, study_name=name, direction="maximize", load_if_exists=True
    )
    if "asked" not in study.user_attrs:
        study.set_user_attr("asked", asked)
    return study


def _anywhere(asked: str) -> dict[str, Any]:
    """Return what was asked, less the device and folders, for trials may be done anywhere."""
    found: dict[str, Any] = json.loads(asked)
    for key in ("device", "data_dir", "offline"):
        found["configuration"].pop(key, None)
    return found


@contextlib.contextmanager
def _readable(journal: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(
            f"{journal}: is damaged: delete it, and the search begins anew"
        ) from error
