"""Fetching: the user's folder, the cache and downloads, from a server on this machine alone."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pictures import KEYS, Files, message, pictures

from biograd import data
from biograd.data.files import fetch
from biograd.errors import DataError
from biograd.recipes import DatasetRecipe


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the user's cache and folder out of every test."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(fetch, "cache_folder", lambda name: folder / name)
    monkeypatch.delenv("BIOGRAD_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    return folder


class Server:
    """A web server on this machine that serves what it is given, and counts what was asked."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.announce_more = 0
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.asked.append(self.path)
                content = owner.content.get(self.path)
                self.send_response(404 if content is None else 200)
                self.send_header("Content-Length", str(len(content or b"") + owner.announce_more))
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def offer(self, files: Files, folder: str) -> str:
        """Serve the packed files below ``folder`` and return its address."""
        for name, content in files.packed.items():
            self.content[f"/{folder}/{name}"] = content
        return self.url(folder)

    def url(self, folder: str) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/{folder}/"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    serving = Server()
    yield serving
    serving.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_download(server: Server, cache: Path) -> None:
    files = Files(urls=(server.offer(Files(), "here"),))
    seen = []
    paths = fetch.fetch(files.recipe, "pictures", progress=lambda *args: seen.append(args))
    assert [path.parent for path in paths] == [cache / "pictures"] * 4
    assert contents(cache) == files.packed
    sizes = {name: len(content) for name, content in files.packed.items()}
    assert seen == [(name, size, size) for name, size in sizes.items()]
    data.load(files.recipe, name="pictures", offline=True)
    fetch.fetch(files.recipe, "pictures")
    assert len(server.asked) == 4  # the cache answers from then on


def test_download_turns_to_the_mirror(server: Server, cache: Path) -> None:
    mirror = server.offer(Files(), "mirror")
    altered = server.url("altered")
    for name in KEYS.values():
        server.content[f"/altered/{name}"] = b"<html>moved</html>"
    files = Files(urls=(server.url("gone"), altered, mirror))
    fetch.fetch(files.recipe, "pictures")
    assert contents(cache) == files.packed
    assert [path.split("/")[1] for path in server.asked] == ["gone", "altered", "mirror"] * 4


@pytest.mark.parametrize("announce_more", [0, 10])
def test_altered_or_truncated_download_is_refused(
    announce_more: int, server: Server, cache: Path
) -> None:
    files = Files(urls=(server.offer(Files(), "here"), "ftp://127.0.0.1/", server.url("gone")))
    altered = files.packed["train-images.gz"][:-10]
    server.content["/here/train-images.gz"] = altered
    server.announce_more = announce_more
    text = message(DataError, lambda: fetch.fetch(files.recipe, "pictures"))
    expected = hashlib.sha256(files.packed["train-images.gz"]).hexdigest()
    assert f"expected SHA-256 {expected}, found {hashlib.sha256(altered).hexdigest()}" in text
    assert "must begin with http://" in text and "404" in text
    assert contents(cache) == {}


def test_altered_file_in_the_cache_is_replaced(server: Server, cache: Path) -> None:
    files = Files(urls=(server.offer(Files(), "here"),))
    folder = files.write(cache / "pictures")
    (folder / "test-images.gz").write_bytes(b"half")
    text = message(DataError, lambda: fetch.fetch(files.recipe, "pictures", offline=True))
    assert "test-images.gz is truncated or altered" in text and not server.asked
    assert fetch.verify(files.recipe, "pictures")[2]["status"] == "altered"
    fetch.fetch(files.recipe, "pictures")
    assert server.asked == ["/here/test-images.gz"] and contents(cache) == files.packed


def test_altered_file_in_the_users_folder_is_left_alone(
    server: Server, cache: Path, tmp_path: Path
) -> None:
    files = Files(urls=(server.offer(Files(), "here"),))
    files.write(cache / "pictures")
    folder = files.write(tmp_path / "own")
    (folder / "test-images.gz").write_bytes(b"half")
    before = contents(folder)
    text = message(DataError, lambda: fetch.fetch(files.recipe, "pictures", folder))
    expected = hashlib.sha256(files.packed["test-images.gz"]).hexdigest()
    assert str(folder / "test-images.gz") in text and "replace or remove it" in text
    assert f"expected SHA-256 {expected}, found {hashlib.sha256(b'half').hexdigest()}" in text
    assert contents(folder) == before and not server.asked


def test_offline_says_which_file_to_put_where(server: Server, cache: Path) -> None:
    files = Files(urls=(server.offer(Files(), "here"),))
    text = message(DataError, lambda: fetch.fetch(files.recipe, "pictures", offline=True))
    assert "train-images.gz" in text and str(cache / "pictures") in text and "--data-dir" in text
    assert not server.asked and not cache.exists()


def test_offline_is_passed_on_by_load(server: Server) -> None:
    files = Files(urls=(server.offer(Files(), "here"),))
    message(DataError, lambda: data.load(files.recipe, name="pictures", offline=True))
    assert not server.asked
    data.load(files.recipe, name="pictures")
    assert len(server.asked) == 4


def test_no_urls(cache: Path) -> None:
    text = message(DataError, lambda: fetch.fetch(Files().recipe, "pictures"))
    assert "no urls" in text and str(cache / "pictures") in text


def test_nobody_answers() -> None:
    server = Server()
    url = server.url("here")
    server.close()
    files = Files(urls=(url,))
    assert url in message(DataError, lambda: fetch.fetch(files.recipe, "pictures"))


def test_cache_that_cannot_be_written(server: Server, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    files = Files(urls=(server.offer(Files(), "here"),))
    assert "cannot be written" in message(DataError, lambda: fetch.fetch(files.recipe, "pictures"))


def test_interrupted_download_leaves_nothing(server: Server, cache: Path) -> None:
    files = Files(urls=(server.offer(Files(), "here"),))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch.fetch(files.recipe, "pictures", progress=interrupt)
    assert contents(cache) == {}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("by_variable", [True, False])
@pytest.mark.parametrize(
    ("name", "below"),
    [
        ("mnist", "."),
        ("mnist", "mnist"),
        ("mnist", "MNIST/raw"),
        ("fashion_mnist", "FashionMNIST/raw"),
        ("pictures", "pictures"),
        ("my/pictures.toml", "pictures"),
    ],
)
def test_files_of_the_user(
    name: str,
    below: str,
    packed: bool,
    by_variable: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files, root = Files(), tmp_path / "own"
    folder = files.write(root / below, packed)
    if by_variable:
        monkeypatch.setenv("BIOGRAD_DATA", str(root))
    paths = fetch.fetch(files.recipe, name, None if by_variable else root, offline=True)
    assert [path.parent for path in paths] == [folder] * 4
    assert {path.suffix for path in paths} == ({".gz"} if packed else {""})
    assert [row["status"] for row in fetch.verify(files.recipe, name, root)] == ["ok"] * 4


def test_unpacked_files_need_their_own_digest(tmp_path: Path) -> None:
    files = Files()
    folder = files.write(tmp_path / "own", packed=False)
    for table in files.recipe.files.values():
        table["sha256_raw"] = ""
    assert "not on this machine" in message(DataError, lambda: files.load(folder))


def test_altered_unpacked_file_is_refused(tmp_path: Path) -> None:
    files = Files()
    folder = files.write(tmp_path / "own", packed=False)
    (folder / "train-labels").write_bytes(files.raw["test-images.gz"])
    assert "train-labels is truncated or altered" in message(DataError, lambda: files.load(folder))


def test_files_of_another_dataset_beside_the_right_ones(tmp_path: Path) -> None:
    """MNIST and Fashion-MNIST name their files alike."""
    digits, clothes = Files(pictures(seed=0)), Files(pictures(seed=1))
    root = digits.write(tmp_path / "own")
    clothes.write(root / "FashionMNIST" / "raw")
    assert digits.load(root, "mnist").digest != clothes.load(root, "fashion_mnist").digest


def test_option_comes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Files()
    monkeypatch.setenv("BIOGRAD_DATA", str(tmp_path / "absent"))
    files.load(files.write(tmp_path / "own"))
    text = message(DataError, lambda: fetch.fetch(files.recipe, "pictures"))
    assert "BIOGRAD_DATA" in text and "no such folder" in text
    text = message(DataError, lambda: files.load(tmp_path / "nowhere"))
    assert "--data-dir" in text and "nowhere" in text


def test_verify_tells_missing_from_altered(tmp_path: Path, cache: Path) -> None:
    files = Files()
    folder = files.write(tmp_path / "own")
    (folder / "train-labels.gz").write_bytes(b"half")
    (folder / "test-labels.gz").unlink()
    rows = fetch.verify(files.recipe, "pictures", folder)
    assert [row["file"] for row in rows] == list(KEYS.values())
    assert [row["status"] for row in rows] == ["ok", "altered", "ok", "missing"]
    assert rows[0]["found"] == rows[0]["expected"]
    assert rows[1]["found"] == hashlib.sha256(b"half").hexdigest() != rows[1]["expected"]
    assert rows[3]["found"] is None and rows[3]["path"] == str(folder / "pictures/test-labels.gz")
    nowhere = fetch.verify(files.recipe, "pictures")
    assert {row["status"] for row in nowhere} == {"missing"}
    assert nowhere[0]["path"] == str(cache / "pictures" / "train-images.gz")
    assert not cache.exists()


def test_generated_datasets_have_nothing_to_fetch() -> None:
    recipe = DatasetRecipe("digits")
    assert not fetch.fetch(recipe, "digits", offline=True)
    assert not fetch.verify(recipe, "digits")


def test_cache_folder_is_one_folder_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    home = fetch.cache_folder("mnist").parent
    assert home.name in ("biograd", "Cache") and fetch.cache_folder("mnist").name == "mnist"
    for name in ("../..", "..", "/etc/passwd", "a b/c d.toml", ".hidden"):
        assert fetch.cache_folder(name).resolve().parent == home.resolve()
