"""Sources, splits and batches: against oracles, and with data that cannot be learned from."""

from __future__ import annotations

import gzip
import io
import math
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from data_paths import shared_data
from pictures import Files, message, pack, pictures

from biograd import data
from biograd.data import Arrays, batches, by_turns
from biograd.data.choosing import stratified
from biograd.data.dataset import digest, validate
from biograd.data.files.unpacking import open_npy
from biograd.data.request import Request
from biograd.data.sources import hdf5, idx, npz
from biograd.data.sources import random_manifolds as manifolds
from biograd.data.sources import yin_yang as disc
from biograd.errors import DataError, RecipeError
from biograd.recipes import DatasetRecipe
from biograd.tasks import Classes


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Sources


def minimal(source: str, tmp_path: Path) -> tuple[DatasetRecipe, Path | None]:
    """Return a small recipe of a source; a new source needs a line only if it needs settings."""
    small = {
        "yin_yang": {"classes": 3, "settings": {"train_rows": 60, "test_rows": 30}},
        "random_manifolds": {"shape": (5,), "settings": {"train_rows": 8, "test_rows": 4}},
    }
    if source == "idx":
        files = Files()
        return files.recipe, files.write(tmp_path / "own")
    return DatasetRecipe(source, **small.get(source, {})), None  # type: ignore[arg-type]


OURS = ("digits", "idx", "yin_yang", "random_manifolds")
"""The sources that ship with biograd; those of one's own data are in ``test_own_data``."""


@pytest.mark.parametrize("source", OURS)
def test_source(source: str, tmp_path: Path) -> None:
    recipe, folder = minimal(source, tmp_path)
    before = torch.get_rng_state()
    legacy = np.random.get_state()[1].copy()  # type: ignore[index]
    first, second = (
        data.load(recipe, name=source, data_dir=folder, offline=True) for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], legacy)  # type: ignore[index]
    assert first.digest == second.digest and first.evaluated_on == "test"
    for split in (first.train, first.test):
        assert split.inputs.dtype == torch.float32 and split.targets.dtype == torch.int64
        assert split.inputs.shape == (len(split), *first.shape)
        assert 0 <= split.inputs.min() < split.inputs.max() <= 1
        assert set(split.targets.tolist()) == set(range(first.task.outputs))


@pytest.mark.parametrize("source", OURS)
def test_source_refuses_an_unknown_setting(source: str) -> None:
    recipe = DatasetRecipe(source, shape=(5,), settings={"smoothnes": 1})  # type: ignore[arg-type]
    text = message(RecipeError, lambda: data.load(recipe, name="mine"))
    key = "settings.smoothnes" if "settings" in data.READS[source] else "settings: has no effect"
    assert "dataset mine" in text and key in text


@pytest.mark.parametrize("source", sorted({*OURS} - {"idx"}))
def test_source_without_files_refuses_them(source: str) -> None:
    recipe = DatasetRecipe(source, shape=(5,), urls=("http://x",))  # type: ignore[arg-type]
    assert "urls" in message(RecipeError, lambda: data.load(recipe, name="mine"))


def test_unknown_source() -> None:
    recipe = DatasetRecipe("digit")  # type: ignore[arg-type]
    text = message(RecipeError, lambda: data.load(recipe, name="mine"))
    assert "did you mean 'digits'?" in text


def test_recipe_of_another_shape_is_refused() -> None:
    recipe = DatasetRecipe("digits", shape=(64,))
    text = message(DataError, lambda: data.load(recipe, name="digits"))
    assert "digits: train split" in text and "[1, 8, 8]" in text and "[64]" in text


def test_digits_are_all_of_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    loaded = data.load(DatasetRecipe("digits"), name="digits")
    assert (len(loaded.train), len(loaded.test), loaded.shape) == (1437, 360, (1, 8, 8))
    rows = torch.cat([loaded.train.inputs, loaded.test.inputs]).flatten(1) * 16
    labels = torch.cat([loaded.train.targets, loaded.test.targets])
    ours = np.column_stack([rows.numpy(), labels.numpy()])
    bundled = load_digits()
    theirs = np.column_stack([bundled.data, bundled.target])
    assert np.array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])
    share = loaded.test.targets.bincount() / labels.bincount()
    assert ((share - 360 / 1797).abs() < 1 / 174).all()


@pytest.mark.parametrize(
    ("name", "rows", "seed"), [("train", 5000, 42), ("validation", 1000, 41), ("test", 1000, 40)]
)
def test_yin_yang_equals_the_published_files(name: str, rows: int, seed: int) -> None:
    folder = shared_data("yin_yang")
    published = np.load(folder / f"{name}_samples.npy"), np.load(folder / f"{name}_labels.npy")
    inputs, targets = disc.sample(rows, seed)
    assert inputs.tobytes() == published[0].tobytes()
    assert targets.tobytes() == published[1].tobytes()
    assert disc.sample(rows, seed + 1)[0].tobytes() != published[0].tobytes()


def test_yin_yang_is_symmetric() -> None:
    """Turning the figure by half a turn swaps yin and yang, and leaves the dots."""
    swapped = {disc.YIN: disc.YANG, disc.YANG: disc.YIN, disc.DOTS: disc.DOTS, None: None}
    points = np.random.default_rng(0).random((2000, 2)).tolist()
    assert all(disc.classify(1 - x, 1 - y) == swapped[disc.classify(x, y)] for x, y in points)
    assert {disc.classify(x, y) for x, y in points} == set(swapped)


def test_manifold_is_the_sum_that_it_says() -> None:
    theta = manifolds.manifold(units=2, dimension=3, smoothness=2.5, stream=stream())
    assert theta.shape == (3, 2, 3, math.ceil(1000 ** (1 / 2.5)))
    places = torch.rand(4, 3, generator=stream(1), dtype=torch.float64)
    found = manifolds.evaluate(theta, 2.5, places)
    a, b, c = theta.tolist()
    for row, unit in np.ndindex(4, 2):
        product = 1.0
        for d, x in enumerate(places[row].tolist()):
            product *= sum(
                a[unit][d][k - 1]
                * k**-2.5
                * math.sin(2 * math.pi * (k * b[unit][d][k - 1] * x + c[unit][d][k - 1]))
                for k in range(1, theta.shape[-1] + 1)
            )
        assert found[row, unit].item() == pytest.approx(product, abs=1e-12)


def test_manifolds_cutoff_is_bounded() -> None:
    assert manifolds.manifold(1, 1, 0.1, stream()).shape[-1] == 1000


def manifold_recipe(classes: int = 3, **settings: Any) -> DatasetRecipe:
    settings = {"train_rows": 50, "test_rows": 20, **settings}
    return DatasetRecipe("random_manifolds", shape=(6,), classes=classes, settings=settings)


def test_manifolds_are_standardised_by_their_training_rows() -> None:
    loaded = data.load(manifold_recipe(), name="manifolds")
    for label in range(3):
        rows = loaded.train.inputs[loaded.train.targets == label]
        assert len(rows) == 50
        assert torch.equal(rows.amin(0), torch.zeros(6))
        assert torch.equal(rows.amax(0), torch.ones(6))


def test_manifolds_grow_rougher_with_less_smoothness() -> None:
    """The total variation along a curve rises as the spectrum falls more slowly."""
    places = torch.linspace(0, 1, 400, dtype=torch.float64).unsqueeze(1)

    def variation(smoothness: float) -> float:
        theta = manifolds.manifold(20, 1, smoothness, stream())
        values = manifolds.evaluate(theta, smoothness, places)
        span = values.amax(0) - values.amin(0)
        return float((values.diff(dim=0).abs().sum(0) / span).mean())

    assert variation(3.0) < variation(1.5) < variation(1.0)


def test_manifolds_follow_the_runs_seed_only_without_their_own() -> None:
    def digest(run: int, **settings: Any) -> str:
        return data.load(manifold_recipe(**settings), name="manifolds", seed=run).digest

    assert digest(0) != digest(1)
    assert digest(0, seed=5) == digest(1, seed=5) != digest(0, seed=6)


def test_manifolds_need_one_number_as_shape() -> None:
    recipe = DatasetRecipe("random_manifolds", shape=(2, 3))
    assert "write [units]" in message(RecipeError, lambda: data.load(recipe, name="manifolds"))


# IDX


def test_idx_values(tmp_path: Path) -> None:
    files = Files()
    loaded = files.load(files.write(tmp_path / "own"))
    images = np.frombuffer(files.raw["train-images.gz"], np.uint8, offset=16).reshape(40, 1, 3, 3)
    assert torch.equal(loaded.train.inputs, torch.from_numpy(images.astype(np.float32) / 255))
    assert loaded.train.targets.tolist() == [row % 4 for row in range(40)]


def test_idx_keeps_the_shape_of_the_files_if_the_recipe_has_none(tmp_path: Path) -> None:
    files = Files(shape=())
    assert files.load(files.write(tmp_path / "own")).shape == (3, 3)


IMAGES = pack(np.zeros((2, 3, 3), np.uint8))
PACKED = gzip.compress(IMAGES, mtime=0)
BAD = {
    "empty": (b"", "not an IDX file"),
    "text": (b"<html>", "not an IDX file: it begins with 0x3c68746d"),
    "floats": (b"\0\0\x0d" + IMAGES[3:], "IDX type 0x0d"),
    "no axes": (b"\0\0\x08\0", "0 axes"),
    "short header": (IMAGES[:10], "truncated: the header of 16 bytes ends at 10"),
    "short": (IMAGES[:-1], "truncated: 2x3x3 values need 18 bytes, found 17"),
    "long": (IMAGES + b"\0", "too long: 2x3x3 values need 18 bytes, found 19"),
    "short gzip": (PACKED[:-9], "truncated or damaged gzip"),
    "damaged gzip": (PACKED[:-6] + bytes(6), "truncated or damaged gzip"),
    "damaged stream": (PACKED[:10] + b"\xff" * 20, "truncated or damaged gzip"),
}


@pytest.mark.parametrize("case", BAD)
def test_idx_refuses(case: str, tmp_path: Path) -> None:
    content, expected = BAD[case]
    path = tmp_path / "file"
    path.write_bytes(content)
    text = message(DataError, lambda: idx.parse(path))
    assert expected in text and str(path) in text


@pytest.mark.parametrize("content", [IMAGES, PACKED], ids=["plain", "packed"])
def test_idx_reads_packed_and_unpacked(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert idx.parse(path).shape == (2, 3, 3)


def test_idx_names_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "cannot be read" in message(DataError, lambda: idx.parse(tmp_path))


def with_content(key: str, values: np.ndarray) -> Files:
    return Files({**pictures(), key: pack(values)})


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        ("train_labels", np.full(40, 4, np.uint8), "train split, row 0: class 4, known are 0 to 3"),
        (
            "test_labels",
            np.arange(40).astype(np.uint8),
            "test split, row 4: class 4, known are 0 to 3",
        ),
        ("train_labels", np.zeros(39, np.uint8), "train-labels.gz: 39 labels for 40 images"),
        ("test_labels", np.zeros((40, 1), np.uint8), "labels must have 1 axis, found 2"),
        ("train_images", np.zeros((40, 4, 4), np.uint8), "shape [4, 4], the recipe says [1, 3, 3]"),
        ("test_images", np.zeros((0, 3, 3), np.uint8), "test-labels.gz: 40 labels for 0 images"),
    ],
)
def test_idx_content_that_does_not_fit(
    key: str, values: np.ndarray, expected: str, tmp_path: Path
) -> None:
    files = with_content(key, values)
    folder = files.write(tmp_path / "own")
    assert expected in message(DataError, lambda: files.load(folder))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"test_labels": None}, "missing key files.test_labels"),
        ({"test_label": {}}, "unknown key files.test_label: did you mean 'test_labels'?"),
        ({"test_labels": "x"}, "files.test_labels: must be a table"),
        ({"test_labels": {"name": "x"}}, "missing key files.test_labels.sha256"),
        ({"test_labels": {"name": "../x", "sha256": "0" * 64}}, "must be a plain name"),
        ({"test_labels": {"name": "x", "sha256": "0" * 63}}, "must be 64 digits"),
        ({"test_labels": {"name": "x", "sha256": "0" * 64, "sha256_raw": "A" * 64}}, "64 digits"),
    ],
)
def test_idx_file_table(change: dict[str, Any], expected: str) -> None:
    table = {**Files().recipe.files, **change}
    table = {key: value for key, value in table.items() if value is not None}
    recipe = DatasetRecipe("idx", files=table)
    text = message(RecipeError, lambda: data.load(recipe, name="mine", offline=True))
    assert text.startswith("dataset mine: ") and expected in text


# Splits


def split(rows: int = 20, classes: int = 4) -> Arrays:
    inputs = torch.rand(rows, 2, generator=stream())
    return Arrays(inputs, torch.arange(rows) % classes)


def spoiled(value: float) -> Arrays:
    good = split()
    inputs = good.inputs.clone()
    inputs[7, 1] = value
    return Arrays(inputs, good.targets)


def relabelled(label: int) -> Arrays:
    good = split()
    targets = good.targets.clone()
    targets[3] = label
    return Arrays(good.inputs, targets)


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (spoiled(math.nan), "row 7: an input is NaN or infinite"),
        (spoiled(-math.inf), "row 7: an input is NaN or infinite"),
        (relabelled(4), "row 3: class 4, known are 0 to 3"),
        (relabelled(-1), "row 3: class -1, known are 0 to 3"),
        (Arrays(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)), "holds no rows"),
        (Arrays(split().inputs, split(19).targets), "holds 20 inputs, 19 labels"),
        (Arrays(split().inputs[:, :1], split().targets), "shape [1], the recipe says [2]"),
        (Arrays(split().inputs.long(), split().targets), "must be floating-point numbers"),
        (Arrays(split().inputs, split().targets.int()), "the task needs int64"),
    ],
)
def test_validate_refuses(broken: Arrays, expected: str) -> None:
    text = message(DataError, lambda: validate(broken, Classes(4), (2,), "mine: test split"))
    assert text.startswith("mine: test split") and expected in text


def test_validate_passes_what_is_right() -> None:
    validate(split(), Classes(4), (2,), "mine: train split")


def test_digest_sees_every_value_and_the_shape() -> None:
    plain = split()
    reshaped = Arrays(plain.inputs.reshape(10, 4), plain.targets)
    swapped = Arrays(plain.inputs.flip(0), plain.targets)
    found = {digest(each) for each in (plain, relabelled(0), spoiled(0), reshaped, swapped)}
    assert len(found) == 5
    assert digest(plain) == digest(split())


def rows_of(part: Arrays) -> list[tuple[float, ...]]:
    columns = torch.cat([part.inputs.flatten(1), part.targets.unsqueeze(1)], 1)
    return sorted(map(tuple, columns.tolist()))


def test_validation_divides_the_training_split() -> None:
    full = data.load(DatasetRecipe("digits"), name="digits")
    held = data.load(DatasetRecipe("digits", validation=0.2), name="digits", seed=0)
    again = data.load(DatasetRecipe("digits", validation=0.2), name="digits", seed=1)
    assert (full.evaluated_on, held.evaluated_on) == ("test", "validation")
    assert held.digest == again.digest != full.digest
    assert (len(held.train), len(held.evaluated)) == (1437 - 287, 287)
    assert sorted(rows_of(held.train) + rows_of(held.evaluated)) == rows_of(full.train)
    assert not set(rows_of(held.evaluated)) & set(rows_of(full.test))
    expected = full.train.targets.bincount() * 287 / 1437
    assert ((held.evaluated.targets.bincount() - expected).abs() < 1).all()


def test_validation_never_looks_at_the_test_split(tmp_path: Path) -> None:
    content = {**pictures(), "test_labels": pack(np.full(40, 99, np.uint8))}
    folder = Files(content).write(tmp_path / "own")
    assert Files(content, validation=0.25).load(folder).evaluated_on == "validation"
    assert "class 99" in message(DataError, lambda: Files(content).load(folder))


@pytest.mark.parametrize(("share", "rows"), [(0.001, 40), (0.9, 4)])
def test_validation_must_leave_rows_on_both_sides(share: float, rows: int, tmp_path: Path) -> None:
    files = Files(pictures(rows), validation=share)
    folder = files.write(tmp_path / "own")
    assert "cannot hold out" in message(DataError, lambda: files.load(folder))


def test_shortened_splits_keep_the_classes_in_proportion() -> None:
    full = data.load(DatasetRecipe("digits", validation=0.2), name="digits")
    recipe = DatasetRecipe("digits", validation=0.2, training_examples=300, test_examples=50)
    short = data.load(recipe, name="digits", seed=0)
    assert short.digest == data.load(recipe, name="digits", seed=1).digest != full.digest
    for part, whole, count in (
        (short.train, full.train, 300),
        (short.evaluated, full.evaluated, 50),
    ):
        assert len(part) == count
        assert set(rows_of(part)) < set(rows_of(whole))
        expected = whole.targets.bincount() * count / len(whole)
        assert ((part.targets.bincount() - expected).abs() < 1).all()


def test_validation_rows_do_not_depend_on_the_number_of_training_examples() -> None:
    full = data.load(DatasetRecipe("digits", validation=0.2), name="digits")
    short = data.load(DatasetRecipe("digits", validation=0.2, training_examples=9), name="digits")
    assert rows_of(short.evaluated) == rows_of(full.evaluated)
    assert len(short.train) == 9


@pytest.mark.parametrize("key", ["training_examples", "test_examples"])
def test_a_split_cannot_be_lengthened(key: str) -> None:
    recipe = DatasetRecipe("digits", **{key: 5000})
    found = message(DataError, lambda: data.load(recipe, name="digits"))
    assert f"{key} = 5000: the split has" in found


@pytest.mark.parametrize("count", [0, 1, 7, 33, 100])
def test_stratified_takes_exactly_what_is_asked(count: int) -> None:
    targets = torch.tensor([0] * 61 + [1] * 30 + [3] * 9)
    kept, taken = stratified(targets, count, stream())
    assert len(taken) == count
    assert torch.cat([kept, taken]).sort()[0].tolist() == list(range(100))
    wanted = targets.bincount() * count / 100
    assert ((targets[taken].bincount(minlength=4) - wanted).abs() < 1).all()


@pytest.mark.parametrize("batch_size", [1, 6, 20, 50])
def test_batches_hold_every_row_once(batch_size: int) -> None:
    whole = split()
    parts = list(batches(whole, batch_size, stream()))
    index = torch.cat([part.index for part in parts])
    assert sorted(index.tolist()) == list(range(20)) and len(parts) == -(-20 // batch_size)
    for part in parts:
        assert torch.equal(part.inputs, whole.inputs[part.index])
        assert torch.equal(part.targets, whole.targets[part.index])


def order(generator: torch.Generator | None) -> list[int]:
    return torch.cat([part.index for part in batches(split(), 7, generator)]).tolist()


def test_batches_follow_their_generator_alone() -> None:
    before = torch.get_rng_state()
    assert order(stream(1)) == order(stream(1)) != order(stream(2))
    one = stream(1)
    assert order(one) != order(one)
    assert order(None) == list(range(20))
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_draw_their_order_at_once() -> None:
    one = stream()
    waiting = batches(split(), 4, one)
    state = one.get_state()
    list(waiting)
    assert torch.equal(one.get_state(), state) and not torch.equal(stream().get_state(), state)


def test_batches_drop_the_last() -> None:
    sizes = [len(part.index) for part in batches(split(), 6, stream(), drop_last=True)]
    assert sizes == [6, 6, 6]


@pytest.mark.parametrize(
    ("size", "drop_last", "expected"), [(0, False, "must be >= 1"), (21, True, "20 rows")]
)
def test_batches_refuse(size: int, drop_last: bool, expected: str) -> None:
    text = message(RecipeError, lambda: batches(split(), size, stream(), drop_last))
    assert expected in text


def test_strata_take_turns() -> None:
    targets = torch.tensor([0] * 50 + [1] * 5 + [2] * 45)
    index = by_turns(targets, 100, 12, seed=0)
    assert len(set(index.tolist())) == 12
    assert targets[index].bincount().tolist() == [4, 4, 4]
    assert targets[index[:6]].bincount().tolist() == [2, 2, 2]
    assert targets[by_turns(targets, 100, 25, 0)].bincount().tolist() == [10, 5, 10]
    assert by_turns(targets, 100, 1000, 0).sort()[0].tolist() == list(range(100))
    assert torch.equal(index, by_turns(targets, 100, 12, 0))
    assert not torch.equal(index, by_turns(targets, 100, 12, 1))


def test_turns_of_no_strata_are_drawn_by_seed() -> None:
    index = by_turns(None, 100, 12, seed=0)
    assert len(set(index.tolist())) == 12 and torch.equal(index, by_turns(None, 100, 12, 0))
    assert not torch.equal(index, by_turns(None, 100, 12, 1))


# What files say of their sizes


def _idx(sizes: list[int], values: bytes) -> bytes:
    return (
        b"\0\0\x08" + bytes([len(sizes)]) + b"".join(n.to_bytes(4, "big") for n in sizes) + values
    )


def _peak(act: Any) -> float:
    """Megabytes that Python and NumPy take at most meanwhile."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


BOMBS = {
    "declared": (_idx([60000, 60000], bytes(10)), "truncated"),
    "beyond": (_idx([2**32 - 1] * 8, bytes(10)), "truncated"),
    "declared, packed": (gzip.compress(_idx([60000, 60000], bytes(10))), "no data are packed so"),
    "packed": (gzip.compress(_idx([4], bytes(200 * 2**20))), "too long"),
    "truncated, packed": (gzip.compress(_idx([5 * 2**20], bytes(3))), "truncated"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_idx_is_not_unpacked_beyond_its_header(case: str, tmp_path: Path) -> None:
    content, expected = BOMBS[case]
    path = tmp_path / "file"
    path.write_bytes(content)
    peak = _peak(lambda: message(DataError, lambda: idx.parse(path)))
    assert expected in message(DataError, lambda: idx.parse(path)) and peak < 10


def _npy(shape: tuple[int, ...], dtype: str = "<f8", values: bytes = b"") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return stream.getvalue() + values


NPY = {
    "huge": (_npy((10**6, 10**6)), "need 8000000000000 bytes, found 0"),
    "overflow": (_npy((2**62, 2**62)), "bytes, found 0"),
    "short": (_npy((3,), values=bytes(23)), "need 24 bytes, found 23"),
    "long": (_npy((3,), values=bytes(25)), "need 24 bytes, found 25"),
    "objects": (_npy((1,), "|O", bytes(8)), "array of objects"),
    "text": (b"hello", "cannot be read as npy"),
    "deep": (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "cannot be read as npy"),
}


@pytest.mark.parametrize("case", NPY)
@pytest.mark.parametrize("packed", [False, True], ids=["npy", "npz"])
def test_npy_is_checked_before_it_is_read(case: str, packed: bool, tmp_path: Path) -> None:
    content, expected = NPY[case]
    path = tmp_path / ("file.npz" if packed else "file.npy")
    path.write_bytes(content)
    if packed:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("x.npy", content)
        request = Request(DatasetRecipe("npz", path=str(path)), "file")
    read = (lambda: npz.read(request)) if packed else (lambda: open_npy(path))
    peak = _peak(lambda: message(DataError, read))
    said = message(DataError, read)
    assert expected in said and str(path) in said and peak < 10


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    size = 80 * 2**20
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as file:  # deflate packs 1 to 1030 at most
        file.writestr("x.npy", _npy((size,), "|u1", bytes(size)))
    request = Request(DatasetRecipe("npz", path=str(path)), "bomb")
    said: list[str] = []
    peak = _peak(lambda: said.append(message(DataError, lambda: npz.read(request))))
    assert "no data are packed so well" in said[0] and peak < 10


def test_hdf5_that_says_more_than_it_stores_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (10**7, 10**4), "f4", chunks=(1000, 100))
        file["y"] = np.zeros(10)
    request = Request(DatasetRecipe("hdf5", path=str(path)), "bomb")
    assert "x: it declares 400000000000 bytes, and 0 are there" in message(
        DataError, lambda: hdf5.read(request)
    )
