"""The shipped dataset recipes: each loads, holds what it says, and is written about."""

from __future__ import annotations

import gzip
import hashlib
import re
from pathlib import Path

import pytest
from data_paths import shared_data

from biograd import data, recipes
from biograd.data.files import fetch
from biograd.environments import ENVIRONMENTS
from biograd.errors import DataError

NAMES = recipes.names("datasets")
READ = {name: recipes.load_dataset(name) for name in NAMES}
ELSEWHERE = {n for n, recipe in READ.items() if any("holds" in f for f in recipe.files.values())}
"""Sets whose files no test has; their layout is read in ``test_recordings`` and ``test_sounds``."""
SPOKEN = {name: "spoken_digits_events" for name in NAMES if name.startswith("spoken")}
DOWNLOADED = [name for name in NAMES if READ[name].urls and name not in ELSEWHERE]
PLAYED = [name for name in NAMES if READ[name].source in ENVIRONMENTS]
STORED = [name for name in NAMES if name not in PLAYED]
LOADED = [name for name in STORED if name not in ELSEWHERE]
ROWS = {
    "digits": (1437, 360),
    "mnist": (60000, 10000),
    "fashion_mnist": (60000, 10000),
    "yin_yang": (5000, 1000),
    "random_manifolds": (4000, 1000),
    "pattern_generation": (50, 1),
    "evidence_accumulation": (1280, 320),
    "spoken_digits_events": (2250, 750),
    "spoken_digits_events_700": (750, 350),
    "shd": (8156, 2264),
    "ssc": (75466, 9981, 20382),
    "nmnist": (60000, 10000),
    "ncars": (15422, 8607),
    "stmnist": (6953,),
    "dvs_gesture": (1176, 288),
    "cifar10_dvs": (9000, 1000),
    "speech_commands": (105829,),
    "cifar10": (50000, 10000),
}
ARRAYS = {
    "digits": "15f21c0cce1449cae34e0dd7323b7bca8965630f1d58a5c70bc4a9dbf70713fb",
    "mnist": "bb6f2befe1882dc3eceb874fb1db0aab5e8b440ad0a9cb80aee3808bf551c503",
    "fashion_mnist": "086b6de44b4cb643f96ba766c7e01b185efeae2df1789e7656b3419502ef6787",
    "yin_yang": "96eef2188dff9621d22c1b36e46ed8e0fb88c257df9f8e5cbd6488995509b3fd",
}
"""Digests of the arrays; the sines of random_manifolds may differ in the last bit."""


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's cache and folder out of every test."""
    monkeypatch.setattr(fetch, "cache_folder", lambda name: tmp_path / "cache" / name)
    monkeypatch.delenv("BIOGRAD_DATA", raising=False)


def folder_of(name: str) -> Path | None:
    if name in SPOKEN:
        return shared_data(SPOKEN[name])
    return shared_data(name).parent if name in DOWNLOADED else None


def test_there_are_recipes() -> None:
    assert set(ROWS) == set(STORED) and set(PLAYED) == set(ENVIRONMENTS.own)
    assert {"mnist", "fashion_mnist"} == set(DOWNLOADED)


@pytest.mark.parametrize("name", PLAYED)
def test_readme_names_the_environment(name: str) -> None:
    text = (recipes.shipped("datasets") / "README.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
    assert line.strip("|").split("|")[2].strip() in READ[name].licence


@pytest.mark.parametrize("name", STORED)
def test_recipe_states_what_a_reader_needs(name: str) -> None:
    recipe = recipes.load_dataset(name)
    assert recipe.description and recipe.licence and recipe.shape
    assert all(url.endswith("/") for url in recipe.urls)
    assert bool(recipe.files) >= bool(recipe.urls)
    for file in fetch.files(recipe, name).values():
        assert name in ELSEWHERE or file.sha256 != file.sha256_raw
        assert fetch.expected(file)[1] or name == "ncars"  # behind a form, without a digest


@pytest.mark.parametrize("name", STORED)
def test_readme_names_the_recipe_and_its_rows(name: str) -> None:
    text = (recipes.shipped("datasets") / "README.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    recipe = recipes.load_dataset(name)
    assert cells[2] == "x".join(map(str, recipe.shape)) and cells[3] == str(recipe.classes or "–")
    assert tuple(int(rows.replace(",", "")) for rows in cells[4].split("+")) == ROWS[name]
    assert recipe.licence.removeprefix("none needed: ") == cells[5]


@pytest.mark.parametrize("name", LOADED)
def test_recipe_loads(name: str) -> None:
    recipe = recipes.load_dataset(name)
    loaded = data.load(recipe, name=name, data_dir=folder_of(name), offline=True, dt_ms=10.0)
    assert (loaded.shape, loaded.task.outputs) == (recipe.shape, recipe.classes or 1)
    assert (len(loaded.train), len(loaded.test)) == ROWS[name]
    assert loaded.evaluated_on == "test"
    for split in (loaded.train, loaded.test):
        if not isinstance(split, data.Arrays):
            continue
        assert 0 <= split.inputs.min() < split.inputs.max() <= 1
        if loaded.task.timed:
            continue
        counts = split.targets.bincount(minlength=recipe.classes)
        assert counts.min() > 0.85 * len(split) / recipe.classes
    if name in ARRAYS:
        assert loaded.digest == ARRAYS[name]


@pytest.mark.parametrize("name", LOADED)
def test_data_are_the_same_for_every_run(name: str) -> None:
    recipe = recipes.load_dataset(name, ["validation=0.1"])
    first, second = (
        data.load(recipe, name=name, data_dir=folder_of(name), offline=True, seed=seed, dt_ms=10.0)
        for seed in (0, 1)
    )
    assert first.digest == second.digest and first.evaluated_on == "validation"
    assert len(first.train) + len(first.evaluated) == ROWS[name][0]


@pytest.mark.parametrize("name", DOWNLOADED)
def test_digests_are_those_of_the_published_files(name: str) -> None:
    folder = shared_data(name)
    for file in fetch.files(recipes.load_dataset(name), name).values():
        content = (folder / file.name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == file.sha256
        assert hashlib.sha256(gzip.decompress(content)).hexdigest() == file.sha256_raw


def test_mnist_is_not_taken_for_fashion_mnist() -> None:
    recipe = recipes.load_dataset("fashion_mnist")
    with pytest.raises(DataError, match="truncated or altered") as caught:
        data.load(recipe, name="fashion_mnist", data_dir=shared_data("mnist"), offline=True)
    assert "\n" not in str(caught.value)


def test_readme_example_is_a_recipe(tmp_path: Path) -> None:
    text = (recipes.shipped("datasets") / "README.md").read_text(encoding="utf-8")
    example = next(block for block in re.findall("```toml\n(.*?)```", text, re.S) if "idx" in block)
    path = tmp_path / "pictures.toml"
    path.write_text(
        example.replace("…", "0" * 64).replace(
            "# likewise", 'name = "x"\nsha256 = "' + "0" * 64 + '"\n# '
        ),
        encoding="utf-8",
    )
    recipe = recipes.load_dataset(path)
    assert set(fetch.files(recipe, "pictures")) == {"train_images", "train_labels"}
