"""What is made of a run: analyses kept beside it, figures, pages, and the view of a terminal."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from runs_synthetic import writer

import biograd
from biograd.__main__ import main
from biograd.analyses import of_run, selectivity, spike_trains
from biograd.analyses.cached import folder_of, kept
from biograd.commands import console
from biograd.commands.watch import drawn, looks, spark, standing_of
from biograd.errors import OutputError, RecipeError, RunFileError
from biograd.pages.run_page import run_page
from biograd.pages.style_sheet import LIGHT, LINKS, TILES, WARNINGS
from biograd.plots import run_figures as figures
from biograd.plots import style
from biograd.plots.panel import svg
from biograd.runs.layout import LayerInfo, Probe

PROBES, CLASSES, STEPS = 40, 5, 20
ENDED = {"test_accuracy": 0.8, "train_accuracy": 0.9, "headline": "accuracy"}
HOSTILE = "</script><script>alert(1)</script>\x1b[2J=cmd|' /C x'!A0$\\frac{$"
INSTALLED = shutil.which("chromium") or shutil.which("chromium-browser")


def make(path: Path, name: str = "weak", close: bool = True, **extra: Any) -> Path:
    """Write a run of two layers and three snapshots; unit 0 of the spiking layer is silent."""
    labels = np.arange(PROBES) % CLASSES
    inputs = np.random.default_rng(0).random((PROBES, 1, 4, 4)).astype(np.float32)
    layers = {
        "blocks.0.activity": LayerInfo("spiking", 12, dt_ms=1.0, n_steps=STEPS),
        "blocks.1.activity": LayerInfo("rate", 8),
    }
    about = {"seed": 1, "rule": name, "model": name, "dataset": name, "headline": "accuracy"}
    run = writer(
        path,
        probe=Probe(np.arange(PROBES), labels, input=inputs),
        layers=layers,
        attributes=about | extra,
        config={"model": name, "data": {"classes": CLASSES}, "data_dir": "/home/secret"},
    )
    for place, step in enumerate((0, 10, 100)):
        run.scalars("train_step", step, place, {"loss": 1.0 / (place + 1), "accuracy": 0.3 * place})
        if step:
            both = {
                f"{s}_{m}": 0.4 * place for s in ("train", "test") for m in ("accuracy", "loss")
            }
            run.scalars("epoch", step, place - 1, {**both, "off_diagonal_energy.readout": 0.1})
        stream = np.random.default_rng(step)
        tuned = 0.1 + 0.5 * place * (labels[:, None] == np.arange(12) % CLASSES)
        spikes = stream.random((PROBES, STEPS, 12)) < np.minimum(tuned, 0.8)[:, None]
        spikes[..., 0] = False
        rates = np.maximum(stream.normal(size=(PROBES, 8)) + tuned[:, :8], 0).astype(np.float32)
        learning = {"cosine": 0.5, "cosine_error": 0.1, "norm_ratio": 1.2, "sign_agreement": 0.6}
        run.snapshot(
            step,
            place,
            {"blocks.0.activity": spikes, "blocks.1.activity": rates},
            {"blocks.0.synapse.weight": {"norm": 1.0 + place, "update_norm": 0.1 * place}},
            {"blocks.0.synapse": {**learning, "angle_deg": 60.0}},
        )
    if close:
        run.summary({"estimator": name, "seconds": 1.0, **ENDED})
        run.close()
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("run") / "run.h5")


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(console, [str(argument) for argument in arguments])


# Analyses


def test_every_analysis_gives_named_arrays(path: Path) -> None:
    with biograd.load(path) as run:
        for name in set(of_run.ANALYSES) - {"drift"}:
            found = biograd.analyse(run, name)
            assert found and all(isinstance(v, np.ndarray) for v in found.values()), name
        with pytest.raises(RunFileError, match="weights"):
            biograd.analyse(run, "drift")


def test_blocks_of_trials_are_all_trials(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with biograd.load(path) as run:
        raster = run.spikes("blocks.0.activity").snapshot(-1).raster()
        expected = spike_trains.intervals(raster.time_ms, raster.unit, raster.trial, 12)
        monkeypatch.setattr(of_run, "TRIALS", 7)
        found = of_run.intervals(run)
        for key, values in expected.items():
            np.testing.assert_allclose(found[f"blocks.0.activity/{key}"], values, rtol=1e-9)
        assert np.isnan(found["blocks.0.activity/cv"][0])


def test_what_a_run_shows_is_what_was_put_in(path: Path) -> None:
    with biograd.load(path) as run:
        tuned = of_run.tuning(run)
        expected = np.arange(12) % CLASSES
        assert (tuned["blocks.0.activity/preferred"][1:] == expected[1:]).all()
        assert tuned["blocks.0.activity/preferred"][0] == -1
        assert np.allclose(of_run.silence(run)["blocks.0.activity/silent"], 1 / 12)
        classes = of_run.rsa(run)["blocks.0.activity/classes"]
        assert classes[0] < 0.2 < 0.5 < classes[-1]
        probes = of_run.probes(run)
        score = probes["blocks.0.activity/classes_score"].mean(1)
        assert score[0] < 0.5 and score[-1] > 0.9
        assert abs(probes["blocks.0.activity/classes_shuffled"].mean() - 1 / CLASSES) < 0.07
        rate = run.spikes("blocks.0.activity").snapshot(-1).rates().mean(0)
        np.testing.assert_allclose(of_run.rates(run)["blocks.0.activity/rate_hz"][-1], rate, 1e-5)


def test_settings_are_obeyed_or_refused(path: Path) -> None:
    with biograd.load(path) as run:
        assert of_run.analyse(run, "rdm", snapshots=2)["step"].tolist() == [0, 100]
        for wrong, words in (
            ({"snapshot": 2}, "did you mean"),
            ({"snapshots": "2"}, "must be a whole number"),
        ):
            with pytest.raises(RecipeError, match=words):
                of_run.analyse(run, "rdm", **wrong)
        with pytest.raises(RecipeError, match="did you mean 'rates'"):
            of_run.analyse(run, "rate")


@pytest.mark.parametrize(
    "setting",
    [
        "psth.bin_ms=NaN", "psth.bin_ms=Infinity", "psth.bin_ms=1e300", "psth.bin_ms=-1",
        "psth.bin_ms=true", "probes.folds=1", "probes.snapshots=0", "probes.seed=-1",
        "rdm.snapshots=0", "rdm.stimuli_most=1", "rdm.distance=[]", f"psth.snapshot={'9' * 5000}",
        f"psth.snapshot={'[' * 5000}", "psth.snapshot=1.5",
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(
    path: Path, setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = setting.partition("=")[0]
    words = ["analyse", str(path), "--what", name.partition(".")[0], "--set", setting]
    assert main(words) == 2
    assert f"analyse: {name}" in capsys.readouterr().err


def test_analyses_are_not_written_through_a_link(tmp_path: Path) -> None:
    run = make(tmp_path / "run.h5")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run.h5.analyses").symlink_to(tmp_path / "elsewhere")
    with biograd.load(run) as opened, pytest.raises(OutputError, match="is a link"):
        kept(opened, "silence")
    assert not list((tmp_path / "elsewhere").iterdir())
    (tmp_path / "run.h5.analyses").unlink()
    (tmp_path / "run.h5.analyses").write_text("mine")
    with biograd.load(run) as opened, pytest.raises(OutputError, match="cannot be written"):
        kept(opened, "silence")


def test_an_analysis_is_kept_until_something_changes(tmp_path: Path) -> None:
    path = make(tmp_path / "run.h5")
    before = path.read_bytes()
    with biograd.load(path) as run:
        first, second = kept(run, "rates"), kept(run, "rates")
        assert first.fresh and not second.fresh
        for name, values in first.arrays.items():
            np.testing.assert_array_equal(values, second.arrays[name])
        assert kept(run, "rdm").fresh and not kept(run, "rdm").fresh
        assert kept(run, "rdm", {"snapshots": 2}).fresh
        first.file.write_bytes(first.file.read_bytes()[:-100])  # damaged: made again
        assert kept(run, "rates").fresh
        folder = folder_of(run)
    assert path.read_bytes() == before and sorted(f.name for f in folder.iterdir()) == [
        "rates.h5",
        "rdm.h5",
    ]
    path.unlink()
    make(path, "other", note="x")
    with biograd.load(path) as run:
        assert kept(run, "rates").fresh
    with h5py.File(folder / "rates.h5") as file:
        assert file.attrs["analysis"] == "rates"


def test_a_run_that_goes_on_makes_a_kept_analysis_old(tmp_path: Path) -> None:
    make(tmp_path / "run.h5", close=False)
    with biograd.load(tmp_path / "run.h5.parts") as run:
        if len(run.snapshots.get("step", ())):
            assert kept(run, "rates").fresh and not kept(run, "rates").fresh


def test_a_link_under_the_name_is_replaced(tmp_path: Path) -> None:
    path = make(tmp_path / "run.h5")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "run.h5.analyses").mkdir()
    (tmp_path / "run.h5.analyses" / "rates.h5").symlink_to(victim)
    with biograd.load(path) as run:
        assert kept(run, "rates").fresh
    assert victim.read_text() == "mine"


def test_analyse_on_the_console(tmp_path: Path) -> None:
    path = make(tmp_path / "run.h5")
    found = invoke("analyse", path, "--what", "rates,rdm", "--set", "rdm.snapshots=2", "--json")
    assert found.exit_code == 0, found.output
    record = json.loads(found.stdout)["analyses"]
    assert record["rdm"]["arrays"]["blocks.0.activity/rdm"] == [2, PROBES, PROBES]
    assert "kept" in invoke("analyse", path, "--what", "rates").stdout
    for arguments, words in (
        (("--what", "rate"), "did you mean 'rates'"),
        (("--what", "rates", "--set", "rdm.snapshots=2"), "no effect"),
        (("--what", "rates", "--set", "rates"), "not NAME.KEY=VALUE"),
        (("--what", ","), "at least one"),
    ):
        with pytest.raises(RecipeError, match=words):
            CliRunner().invoke(console, ["analyse", str(path), *arguments], catch_exceptions=False)


# Figures


def test_every_figure_is_drawn_with_its_numbers(path: Path, tmp_path: Path) -> None:
    names = set(figures.FIGURES) - {"weights", "confusion"}
    with biograd.load(path) as run:
        for name in sorted(names):
            panels = figures.panels(run, [name])
            assert panels and all(panel.rows and panel.caption for panel in panels), name
        written = biograd.plot(run, ["curves", "rdm"], tmp_path / "figure", formats=["pdf", "svg"])
    assert {file.suffix for file in written} == {".pdf", ".svg", ".csv"}
    pdf = (tmp_path / "figure.pdf").read_bytes()
    assert b"/Type /Font" in pdf and b"/Type3" not in pdf  # fonttype 42
    box = re.search(rb"/MediaBox \[ 0 0 ([0-9.]+)", pdf)
    assert box and abs(float(box[1]) / 72 * 25.4 - 180) < 0.1
    rows = list(csv.DictReader(io.StringIO((tmp_path / "figure-curves.csv").read_text())))
    assert [row["test"] for row in rows] == ["40.0", "80.0"] or len(rows) == 2


def test_what_is_not_there_is_refused(path: Path, tmp_path: Path) -> None:
    with biograd.load(path) as run:
        for arguments, words in (
            ({"what": "raste"}, "did you mean 'raster'"),
            ({"what": "curves", "width": "dubble"}, "width = 'dubble'"),
            ({"what": "curves", "formats": ["gif"]}, "format = 'gif'"),
        ):
            with pytest.raises(RecipeError, match=words):
                biograd.plot(run, path=tmp_path / "x", **arguments)
    assert not list(tmp_path.iterdir())
    done = invoke("plot", path, "--what", "curves", "--out", tmp_path / "y", "--format", "svg")
    assert done.exit_code == 0 and (tmp_path / "y-curves.csv").is_file()
    again = invoke("plot", path, "--what", "curves", "--out", tmp_path / "y", "--format", "svg")
    assert isinstance(again.exception, RecipeError) and "--force" in str(again.exception)
    (tmp_path / "y.svg").unlink()  # the numbers of it are somebody's too
    again = invoke("plot", path, "--what", "curves", "--out", tmp_path / "y", "--format", "svg")
    assert "y-curves.csv" in str(again.exception) and not (tmp_path / "y.svg").exists()


def test_a_raster_is_sorted_by_one_half_and_shown_on_the_other() -> None:
    noise = np.random.default_rng(0).poisson(3, (400, 30))
    labels = np.repeat(np.arange(4), 100)
    first, second = selectivity.halves(labels)
    preferred = selectivity.tuning(noise[first], labels[first]).preferred

    def advantage(half: np.ndarray) -> float:
        means = np.stack([noise[half & (labels == k)].mean(0) for k in range(4)])
        return float((means[preferred, np.arange(30)] - means.mean(0)).mean())

    assert advantage(first) > 0.2 and abs(advantage(second)) < 0.1


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours as WCAG 2 has it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_letters_and_marks_can_be_told_from_the_paper() -> None:
    schemes = ((LIGHT, 0), (style.DARK, 1))
    for names, place in schemes:
        paper = names["paper"]
        for ground in (paper, TILES[place], WARNINGS[place]):
            assert contrast(names["ink"], ground) >= 4.5
            assert contrast(names["soft"], ground) >= 4.5
        assert contrast(LINKS[place], paper) >= 4.5
        assert contrast(names["axis"], paper) >= 3
        assert all(contrast(colour, paper) >= 3 for colour in style.COLOURS[:4])
    assert contrast(style.ORANGE, "#ffffff") < 3  # the control: what would not do


# Pages


class Page(HTMLParser):
    """Collects tags, addresses, ids and headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for key, value in attributes:
            if key in ("src", "href", "xlink:href", "action", "data"):
                self.addresses.append(value or "")
            if key == "id":
                self.ids.append(value or "")
            if key.startswith("on"):
                self.handlers.append(key)


@pytest.fixture(scope="module")
def text(path: Path) -> str:
    with biograd.load(path) as run:
        return run_page(run)


def test_a_page_needs_nothing_else(text: str) -> None:
    page = Page(text)
    assert page.tags.count("h1") == 1 and {"svg", "table", "nav", "main", "figure"} <= {*page.tags}
    assert not {"script", "link", "iframe", "object"} & {*page.tags} and not page.handlers
    assert page.addresses and all(a.startswith(("#", "data:")) for a in page.addresses)
    assert len(page.ids) == len(set(page.ids))
    inside = {address[1:] for address in page.addresses if address.startswith("#")}
    assert inside <= set(page.ids)
    assert "default-src 'none'" in text and "@import" not in text and "url(http" not in text
    assert set(re.findall(r"https?://[^\"'<\s]*", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert len(text) < 5e6 and "/home/secret" not in text and "biograd reproduce run.h5" in text
    assert page.tags.count("figcaption") == page.tags.count("figure") > 10


def test_numbers_of_a_figure_are_its_csv(text: str) -> None:
    found = re.findall(r'href="data:text/csv;base64,([^"]*)"', text)
    tables = [list(csv.reader(io.StringIO(base64.b64decode(one).decode()))) for one in found]
    assert len(tables) > 10 and all(len(rows) > 1 for rows in tables)


def test_every_figure_says_what_it_is_to_those_who_do_not_see_it(text: str) -> None:
    assert text.count('role="img"') == text.count("<title id=") == text.count("<desc id=")
    assert 'tabindex="0"' in text and 'class="skip"' in text and 'lang="en"' in text


def test_hostile_names_are_text_everywhere(tmp_path: Path) -> None:
    path = make(tmp_path / "run.h5", HOSTILE)
    with biograd.load(path) as run:
        text = run_page(run)
        panel = figures.panels(run, ["curves"])[0]
        record = standing_of(path)
    page = Page(text)
    assert "script" not in page.tags and "\x1b" not in text and "<script" not in text
    assert "\x1b" not in svg(panel, "a")
    shown = drawn(record)
    assert "\x1b" not in shown and "\\x1b[2J" in shown
    out = tmp_path / "page.html"
    assert invoke("report", path, "--out", out).exit_code == 0 and out.is_file()
    both = invoke("report", path, make(tmp_path / "b.h5", "b"), "--out", tmp_path / "two.html")
    assert both.exit_code == 0, both.exception
    two = (tmp_path / "two.html").read_text()
    assert "script" not in Page(two).tags and "\x1b" not in two


def test_several_runs_are_compared(tmp_path: Path) -> None:
    paths = [
        make(tmp_path / f"{name}{seed}.h5", name, seed=seed)
        for name in ("weak", "backprop")
        for seed in (0, 1)
    ]
    done = invoke("report", *paths, "--json")
    assert done.exit_code == 0, done.exception
    text = (tmp_path / "report.html").read_text()
    assert "2 cells, 2 seeds, 4 runs" in text and 'href="./weak0.h5"' in text
    assert "Dissimilarities" in text and "Similarity with weak" in text
    twice = invoke("report", paths[0], tmp_path / "weak0.h5", paths[0])
    assert twice.exit_code == 0  # one and the same run, once
    copy = tmp_path / "copy.h5"
    shutil.copy(paths[0], copy)
    again = invoke("report", paths[0], copy, "--out", tmp_path / "x.html")
    assert isinstance(again.exception, RecipeError) and "is there already" in str(again.exception)
    folder = invoke("report", tmp_path, "--out", tmp_path / "x.html")
    assert isinstance(folder.exception, RunFileError)


def test_a_page_of_a_run_without_anything(tmp_path: Path) -> None:
    writer(tmp_path / "run.h5").close()
    with biograd.load(tmp_path / "run.h5") as run:
        text = run_page(run)
    assert "holds no epochs" in text and "NaN" not in text and "Traceback" not in text


@pytest.mark.slow
@pytest.mark.skipif(INSTALLED is None, reason="no Chromium")
@pytest.mark.parametrize(("width", "scheme"), [(390, 1), (390, 0), (1280, 1), (1280, 0)])
def test_a_browser_shows_it(text: str, tmp_path: Path, width: int, scheme: int) -> None:
    """The page is as wide as its window, and of the colour of its scheme."""
    import subprocess

    from matplotlib.image import imread

    page, frame, shot = (tmp_path / name for name in ("page.html", "frame.html", "shot.png"))
    page.write_text(text)
    style_ = f"border:0;width:{width}px;height:900px"
    frame.write_text(f"<body style='margin:0'><iframe src='page.html' style='{style_}'></iframe>")
    subprocess.run(
        [str(INSTALLED), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         f"--blink-settings=preferredColorScheme={scheme}", "--allow-file-access-from-files",
         "--window-size=1280,900", f"--screenshot={shot}", f"file://{frame}"],
        check=True, capture_output=True, timeout=100,
    )  # fmt: skip
    seen = imread(shot)[..., :3]
    corner = seen[890, 2]
    assert (corner > 0.9).all() if scheme else (corner < 0.2).all()
    inked = np.abs(seen[:, :width] - corner).max(-1) > 0.3
    assert inked.any(0)[: width // 2].sum() > 100 and inked.sum() > 2000


# The terminal


def test_watching_a_run_that_has_ended(path: Path) -> None:
    record = standing_of(path)
    assert record["status"] == "completed" and record["epochs"] == 2 and record["step"] == 100
    assert len(list(looks(path, 0.1))) == 1
    done = invoke("watch", path)
    assert done.exit_code == 0 and "test_accuracy" in done.stdout and "completed" in done.stdout
    assert json.loads(invoke("watch", path, "--json").stdout)["courses"]["test_accuracy"]


def test_watching_a_run_that_goes_on_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = writer(tmp_path / "run.h5")
    run.scalars("epoch", 1, 0, {"loss": 1.0})
    run.commit(1)
    seen = iter((lambda: (run.scalars("epoch", 2, 1, {"loss": 0.5}), run.commit(2)), run.close))
    monkeypatch.setattr("biograd.commands.watch.time.sleep", lambda _: next(seen)())
    found = list(looks(tmp_path / "run.h5", 0.1))
    assert [len(one["courses"]["loss"]) for one in found] == [1, 2, 2]
    assert [one["status"] for one in found] == ["running", "running", "completed"]


def test_a_killed_run_is_shown_once(tmp_path: Path) -> None:
    run = writer(tmp_path / "run.h5")
    run.scalars("epoch", 1, 0, {"loss": 1.0})
    run.commit(1)
    copied = shutil.copytree(tmp_path / "run.h5.parts", tmp_path / "killed.h5.parts")
    run.close()
    (found,) = looks(copied, 0.1)
    assert found["status"] == "crashed" and found["courses"]["loss"] == [1.0]
    before = sorted(copied.rglob("*"))
    assert invoke("watch", tmp_path / "killed.h5").exit_code == 0
    assert sorted(copied.rglob("*")) == before


def test_sparks() -> None:
    assert spark([]) == "" and spark([1.0, 1.0]) == "▁▁"
    assert spark([0.0, float("inf"), 7.0]) == "▁ █" and len(spark([0.0] * 100)) == 40


# The page of the manual


def test_the_manual_runs(path: Path, root: Path, tmp_path: Path) -> None:
    """Every piece of Python on the page runs, five lines of work at most, and its files appear."""
    text = (root / "docs" / "analysis.md").read_text(encoding="utf-8")
    pieces = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(pieces) > 8
    names: dict[str, Any] = {}
    for piece in pieces:
        work = [line for line in piece.splitlines() if line and "import" not in line]
        assert len(work) <= 5, piece
        with pytest.MonkeyPatch.context() as patched:
            patched.chdir(tmp_path)
            if not (tmp_path / "run.h5").exists():
                shutil.copy(path, tmp_path / "run.h5")
            exec(compile(piece, "analysis.md", "exec"), names)
    assert (tmp_path / "rdm.pdf").is_file() and (tmp_path / "curves-curves.csv").is_file()
    listed = set(re.findall(r"`(\w+)`", text.split("## The analyses")[1].split("\n\n`biograd")[0]))
    assert listed == set(of_run.ANALYSES)
