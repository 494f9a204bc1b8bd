"""Files appear in full or not at all, with usual permissions, and never through a link."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from biograd import disk
from biograd.errors import OutputError, RecipeError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs links and permissions")


def test_a_file_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for text in (b"one", b"two"):
        disk.write_bytes(path, text)
        assert path.read_bytes() == text and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_permissions_follow_the_mask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        disk.write_json(tmp_path / "a", {})
        disk.append_line(tmp_path / "b", "line")
    finally:
        os.umask(before)
    for name in "ab":
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_replaced_and_not_followed(tmp_path: Path, there: bool) -> None:
    victim, path = tmp_path / "victim", tmp_path / "out"
    if there:
        victim.write_text("another's")
    path.symlink_to(victim)
    disk.write_bytes(path, b"mine")
    assert not path.is_symlink() and path.read_bytes() == b"mine"
    assert victim.exists() == there and (not there or victim.read_text() == "another's")


def test_nothing_is_appended_or_locked_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("another's")
    (tmp_path / "log").symlink_to(tmp_path / "victim")
    with pytest.raises(OutputError, match="log: is a link"), disk.writing(tmp_path, "try again"):
        disk.append_line(tmp_path / "log", "line")
    with pytest.raises(OSError, match="symbolic links"):
        disk.Lock(tmp_path / "log")
    assert (tmp_path / "victim").read_text() == "another's"


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    disk.write_bytes(tmp_path / "a", b"old")
    with pytest.raises(KeyboardInterrupt), disk.replacing(tmp_path / "a") as file:
        file.write(b"new")
        assert any(disk.is_temporary(path.name) for path in tmp_path.iterdir())
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_two_temporary_files_have_different_names(tmp_path: Path) -> None:
    with disk.replacing(tmp_path / "a") as one, disk.replacing(tmp_path / "a") as two:
        one.write(b"1")
        two.write(b"2")
        assert len(list(tmp_path.iterdir())) == 2
    assert (tmp_path / "a").read_bytes() == b"1"  # the last to end


def test_only_what_lies_on_the_disk_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"text")
    assert disk.read_bytes(path) == b"text"
    with pytest.raises(OSError, match="too large"):
        disk.read_bytes(path, limit=3)
    os.truncate(path, 2**29)  # a hole
    with pytest.raises(OSError, match="too large"):
        disk.read_bytes(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="ordinary"):
        disk.read_bytes(tmp_path / "pipe")


def test_reading_allocates_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert disk.read_bytes(tmp_path / "a", 2**60) == b"abc"
    assert disk.read_text(tmp_path / "a") == "abc"
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match=r"ordinary|directory"):
            disk.read_bytes(path)


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_not_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    for force in (False, True):
        with pytest.raises(RecipeError, match="name a file"):
            disk.check_target(path, force)
    assert path.exists() and not path.is_file()


@pytest.mark.parametrize("name", ["a\0b", "", "/", "a" * 300])
def test_names_that_no_file_has(name: str) -> None:
    with pytest.raises(RecipeError):
        disk.check_target(Path(name), force=True)


def test_files_that_belong_together_appear_together(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "nowhere" / "two"
    with pytest.raises(OSError, match="nowhere"):
        disk.write_together({one: b"1", two: b"2"})
    assert not list(tmp_path.iterdir())
    disk.write_together({one: b"1", tmp_path / "two": b"2"})
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == [b"1", b"2"]


def test_a_folder_that_is_filled(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(ZeroDivisionError), disk.filling(folder) as place:
        (place / "a").write_text("half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with disk.filling(folder) as place:
        (place / "a").write_text("whole")
        assert not folder.exists()
    assert [path.read_text() for path in folder.iterdir()] == ["whole"]
    with pytest.raises(RecipeError, match="exists"), disk.filling(folder):
        pass
    (folder / "mine").write_text("mine")
    with disk.filling(folder, force=True) as place:
        (place / "a").write_text("again")
    assert {path.read_text() for path in folder.iterdir()} == {"again", "mine"}
    for make in (lambda path: path.symlink_to("nowhere"), lambda path: path.write_text("file")):
        make(tmp_path / "odd")  # type: ignore[no-untyped-call]
        with pytest.raises(RecipeError, match="no folder"), disk.filling(tmp_path / "odd"):
            pass
        (tmp_path / "odd").unlink()
