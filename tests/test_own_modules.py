"""A module of one's own from the console: trained, resumed, probed, repeated, compared."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from pictures import message
from runs_synthetic import edited
from torch import nn
from torch.nn import functional

import biograd
from biograd.__main__ import main
from biograd.configuration import Configuration
from biograd.errors import RecipeError
from biograd.tasks import Classes, Regression, TimeSeries, Weighted, learned
from biograd.tasks.own_loss import NAMES

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=6, activation="relu"):
        super().__init__()
        self.first, self.second = nn.Linear(4, width), nn.Linear(width, width)
        self.readout = nn.Linear(width, 3)
        self.activation = getattr(torch, activation)

    def forward(self, inputs):
        return self.readout(self.activation(self.second(self.activation(self.first(inputs)))))


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.readout, self.state = nn.Linear(4, 5), nn.Linear(5, 3), None

    def reset_mem(self):
        self.state = None

    def forward(self, inputs):
        now = torch.tanh(self.first(inputs))
        now = now if self.state is None else now + self.state.mean(0)
        self.state = now.detach()
        return self.readout(now)


def put_back(network):
    network.state = None


def focal(outputs, targets):
    chance = outputs.log_softmax(1).gather(1, targets[:, None])[:, 0]
    return -((1 - chance.exp()) ** 2) * chance


def broken():
    made = Net()
    made.forward = lambda inputs: inputs @ inputs
    return made


def data():
    stream = torch.Generator().manual_seed(1)
    return torch.rand(60, 4, generator=stream), torch.arange(60) % 3
"""
FAST = ["-q", "--dataset", "mine.npz"]
ONCE = ["--epochs", "1", "--batch-size", "16"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "net.py").write_text(NET)
    stream = np.random.default_rng(0)
    x, y = stream.random((60, 4), dtype=np.float32), np.arange(60) % 3
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    return tmp_path


def train(*words: str, out: str = "a.h5", model: str = "net.py:Net") -> int:
    return main(["train", "--model", model, "-o", out, "--force", *FAST, *ONCE, *words])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_the_step_of_events_is_kept(place: Path) -> None:
    """A run file holds the step by which events were binned: a repetition reads the same counts."""
    stream = np.random.default_rng(0)
    with h5py.File("events.h5", "w") as file:
        times = file.create_dataset("spikes/times", (24,), h5py.vlen_dtype(np.float32))
        units = file.create_dataset("spikes/units", (24,), h5py.vlen_dtype(np.int32))
        for row in range(24):
            times[row] = np.sort(stream.uniform(0, 0.4, 30))
            units[row] = stream.integers(0, 4, 30)
        file["labels"] = np.arange(24) % 3
    head = "def forward(self, inputs):"
    net = NET.replace(head, f"{head}\n        inputs = inputs.amax(1)", 1)  # counts in a bin
    assert net != NET
    Path("net.py").write_text(net)
    own = ["--model", "net.py:Net", "--dataset", "events.h5"]
    keys = ["--set", "encoding.dt_ms=100", "--set", "dataset.time_unit=s"]
    assert main(["train", *own, "-o", "e.h5", *ONCE, "--estimator", "backprop", "-q", *keys]) == 0
    assert main(["reproduce", "e.h5", "-q", *own]) == 0
    assert main(["resume", "e.h5", "--epochs", "2", "-q", *own]) == 0
    with biograd.load("e.h5") as run:
        assert run.config["recipe"]["encoding"] == {"dt_ms": 100}


def test_a_newcomer(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Train, resume, probe, reproduce; without --model a line that says what to type."""
    assert train("--model-arg", "width=5", "--model-arg", "activation=tanh") == 0
    assert "biograd resume a.h5 --epochs 2 --model net.py:Net" in capsys.readouterr().out
    for command in (["resume", "a.h5", "--epochs", "2"], ["probe", "a.h5"], ["reproduce", "a.h5"]):
        assert main(command) == 2
        assert "imports nothing by itself: give it, --model net.py:Net" in said(capsys)
    own = ["--model", "net.py:Net"]
    assert main(["resume", "a.h5", "--epochs", "2", "-q", *own]) == 0
    assert main(["probe", "a.h5", "--draws", "2", *own]) == 0
    assert main(["reproduce", "a.h5", "-q", *own]) == 0
    with biograd.load("a.h5") as run:
        assert run.summary["epochs"] == 2 and run.code["model"]["net.py"] == NET
        code = run.config["code"]["model"]
        assert (code["place"], code["name"]) == ("net.py", "Net")
        assert code["sha256"] == hashlib.sha256(NET.encode()).hexdigest()
        assert run.config["recipe"]["module"]["arguments"] == {"width": 5, "activation": "tanh"}
        assert str(place) not in json.dumps(run.config["recipe"])
        network, engine = biograd.trained(run, "net.py:Net")
        assert network.first.out_features == 5  # type: ignore[union-attr]
        engine.detach()


def test_it_is_the_module_that_the_call_trains(place: Path) -> None:
    """The console's run is that of the library on the class, bit by bit; another seed is not."""
    assert train() == 0
    sys.path.insert(0, str(place))
    from net import Net  # type: ignore[import-not-found]

    options: dict[str, Any] = {"epochs": 1, "batch_size": 16}
    run = biograd.train(Net, "mine.npz", path="b.h5", **options)
    other = biograd.train(Net, "mine.npz", path="c.h5", seed=1, **options)
    del sys.modules["net"]
    first = biograd.load("a.h5").checkpoint()[0]
    assert all(torch.equal(value, run.checkpoint()[0][name]) for name, value in first.items())
    name = "network.first.weight"
    assert not torch.equal(first[name], other.checkpoint()[0][name])
    assert run.config["code"] == biograd.load("a.h5").config["code"]


def test_other_code_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train() == 0
    own = ["--model", "net.py:Net"]
    (place / "net.py").write_text(NET + "\n# another comment\n")
    capsys.readouterr()
    assert main(["resume", "a.h5", "--epochs", "2", "-q", *own]) == 2
    assert "trained by other code: net.py of SHA-256" in said(capsys)
    assert main(["probe", "a.h5", "--draws", "2", *own]) == 0
    assert "trained by other code: net.py of SHA-256" in said(capsys)
    assert main(["reproduce", "a.h5", "-q", *own]) == 0  # it computes the same
    (place / "net.py").write_text(NET.replace("self.activation(self.second", "(self.second"))
    assert main(["reproduce", "a.h5", "-q", *own]) == 3
    assert "code net.py of SHA-256" in said(capsys)
    main(["inspect", "a.h5", "--source"])
    (place / "net.py").write_text(capsys.readouterr().out)
    assert main(["resume", "a.h5", "--epochs", "2", "-q", *own]) == 0


def test_a_state_is_put_back_by_the_name_that_the_file_knows(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keeps, own = {"model": "net.py:Keeps"}, ["--model", "net.py:Keeps"]
    assert train(**keeps) == 2 and "reset" in said(capsys)
    assert train("--reset", "rest_mem", **keeps) == 2 and "'reset_mem'" in said(capsys)
    assert train("--reset", "reset_mem", **keeps) == 0
    assert main(["resume", "a.h5", "--epochs", "2", "-q", *own]) == 0
    assert main(["reproduce", "a.h5", "-q", *own]) == 0
    assert main(["probe", "a.h5", "--draws", "2", *own]) == 0
    assert train("--reset", "net.py:put_back", out="b.h5", **keeps) == 0
    capsys.readouterr()
    assert main(["probe", "b.h5", "--draws", "2", *own]) == 2
    assert "--reset net.py:put_back" in said(capsys)
    assert main(["probe", "b.h5", "--draws", "2", *own, "--reset", "net.py:put_back"]) == 0


def test_a_recipe_with_a_module_is_a_recipe(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "recipes").mkdir()
    (place / "net.py").rename(place / "recipes" / "net.py")
    text = '[module]\nsource = "net.py:Net"\narguments = { width = 3 }\n'
    text += 'sites = ["first", "second", "readout"]\n'
    recipe = place / "recipes" / "mine.toml"
    recipe.write_text(f'estimator = "weak"\n{text}[estimators.weak]\ncopies = 5\n')
    model = {"model": "recipes/mine.toml"}
    assert train(**model) == 2 and "--allow-code" in said(capsys)
    assert train("--allow-code", "--model-arg", "width=4", **model) == 0
    with biograd.load("a.h5") as run:
        assert run.config["model"] == "mine" and run.config["estimator"] == "weak"
        module = run.config["recipe"]["module"]
        assert module["source"] == "net.py:Net" and module["arguments"] == {"width": 4}
        assert Configuration.of(run.config, "a").sites == {
            name: (name,) for name in ("first", "second", "readout")
        }
    recipe.write_text(text + "[network]\nhidden = [3]\n")
    assert train("--allow-code", **model) == 2
    assert "network.hidden: has no effect on a module of yours" in said(capsys)
    recipe.write_text('[module]\nsource = "nothing"\n')
    assert train("--allow-code", **model) == 2 and "write FILE.py:NAME" in said(capsys)


REFUSED = {
    "a key of networks": (["--set", "network.hidden=[3]"], "network.hidden: has no effect"),
    "a key of encodings": (["--set", "encoding.gain=2"], "encoding.gain: has no effect"),
    "an encoding": (["--set", "encoding.kind=poisson"], "encoding.kind: has no effect"),
    "steps without time": (["--set", "encoding.dt_ms=2"], "encoding.dt_ms = 2: has no effect"),
    "source": (["--set", "module.source=net.py:Keeps"], "code is given by --model"),
    "loss as a key": (["--set", "training.loss=net.py:focal"], "code is given by --loss"),
    "reset as a key": (["--set", "module.reset=net.py:put_back"], "code is given by --reset"),
    "sites": (["--set", "module.sites=['nothing']"], "nothing"),
    "argument": (["--model-arg", "wdith=3"], "did you mean 'width'?"),
    "date": (["--model-arg", "width=2020-01-01"], "module.arguments.width: date"),
    "no value": (["--model-arg", "width"], "KEY=VALUE"),
    "loss": (["--loss", "l1_los"], "did you mean 'l1_loss'?"),
    "class as loss": (["--loss", "net.py:Net"], "is a class"),
    "task": (["--task", "regresion"], "regression"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_nothing_is_ignored(kind: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, expected = REFUSED[kind]
    assert train(*words) == 2
    text = said(capsys)
    assert expected in text and text.count("\n") == 1 and not (place / "a.h5").exists()


def test_what_is_a_modules_has_no_effect_on_a_network(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["--model-arg", "width=3"],
        ["--reset", "reset_mem"],
        ["--set", "module.sites=['a']"],
    ):
        assert train(*words, model="ann") == 2
        assert "of yours" in (text := said(capsys)) or "on a network of biograd" in text
    assert train(model="ann") == 0
    assert main(["resume", "a.h5", "--epochs", "2", "-q", "--model", "net.py:Net"]) == 2
    assert "leave the module (--model) out" in said(capsys)
    assert main(["probe", "a.h5", "--loss", "net.py:focal"]) == 2 and "leave yours out" in said(
        capsys
    )


def test_an_error_of_its_forward_pass_is_named(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(model="net.py:broken") == 2
    text = said(capsys)
    line = NET.splitlines().index("    made.forward = lambda inputs: inputs @ inputs") + 1
    assert f"(net.py, line {line})" in text and text.count("\n") == 1
    assert main(["--debug", "train", "--model", "net.py:broken", *FAST, "-o", "b.h5"]) == 2
    assert "Traceback" in said(capsys)


# Losses ------------------------------------------------------------------------------------------


def test_a_loss_of_ones_own(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loss = ["--loss", "net.py:focal"]
    assert train(*loss) == 0
    capsys.readouterr()
    own = ["--model", "net.py:Net"]
    assert main(["reproduce", "a.h5", "-q", *own]) == 2 and "--loss net.py:focal" in said(capsys)
    assert main(["reproduce", "a.h5", "-q", *own, *loss]) == 0
    with biograd.load("a.h5") as run:
        assert "test_accuracy" in run.summary
        plain = biograd.train("net.py:Net", "mine.npz", epochs=1, batch_size=16, path="b.h5")
        name = "network.first.weight"
        assert not torch.equal(run.checkpoint()[0][name], plain.checkpoint()[0][name])

    def same(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(outputs, targets, reduction="none")

    again = biograd.train("net.py:Net", "mine.npz", epochs=1, batch_size=16, path="c.h5", loss=same)
    for name, value in plain.checkpoint()[0].items():
        torch.testing.assert_close(again.checkpoint()[0][name], value, rtol=1e-5, atol=1e-7)


TORCHS: dict[str, Any] = {
    "mse_loss": nn.MSELoss(),
    "l1_loss": nn.L1Loss(),
    "smooth_l1_loss": nn.SmoothL1Loss(),
    "huber_loss": nn.HuberLoss(),
    "binary_cross_entropy": nn.BCELoss(),
    "binary_cross_entropy_with_logits": nn.BCEWithLogitsLoss(),
    "multilabel_soft_margin_loss": nn.MultiLabelSoftMarginLoss(),
    "soft_margin_loss": nn.SoftMarginLoss(),
    "poisson_nll_loss": nn.PoissonNLLLoss(),
    "kl_div": lambda outputs, goal: nn.KLDivLoss(reduction="none")(outputs, goal).mean(),
    "nll_loss": nn.NLLLoss(),
    "multi_margin_loss": nn.MultiMarginLoss(),
}


@pytest.mark.parametrize("name", NAMES)
def test_losses_by_name_are_torchs(name: str) -> None:
    """The mean over a batch is what torch's own class returns; on classes and on numbers."""
    outputs = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    labels = torch.arange(6) % 3
    task = learned(Classes(3), name)
    marks = functional.one_hot(labels, 3).float()
    goal = labels if name in ("nll_loss", "multi_margin_loss") else marks
    if name == "soft_margin_loss":
        goal = 2 * goal - 1
    expected = TORCHS[name](outputs, goal)
    torch.testing.assert_close(task.losses(outputs, labels).mean(), expected)
    assert task.headline == "accuracy" and task.metrics(outputs, labels).keys() == {"accuracy"}
    if goal is labels:
        assert "is for classes" in message(RecipeError, lambda: learned(Regression(3), name))
        return
    real = learned(Regression(3), name)
    torch.testing.assert_close(real.losses(outputs, marks).mean(), expected)
    course = learned(TimeSeries(3), name)
    whole = course.losses(outputs.view(2, 3, 3), marks.view(2, 3, 3))
    torch.testing.assert_close(whole.mean(), expected)


def test_missing_targets_and_weights_count_for_a_named_loss() -> None:
    task = learned(Weighted(task=Regression(2)), "l1_loss")
    outputs = torch.zeros(2, 2, requires_grad=True)
    targets = task.pack(
        (torch.tensor([[1.0, torch.nan], [2.0, 4.0]]), torch.tensor([2.0, 1.0])), ""
    )
    assert task.losses(outputs, targets).tolist() == [2.0, 3.0]
    task.losses(outputs, targets).sum().backward()
    assert outputs.grad is not None and outputs.grad.isfinite().all()


# Metrics -----------------------------------------------------------------------------------------


METRICS = """
import torch


def margin(outputs, targets):
    best = outputs.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


class Rows:
    def reset(self):
        self.count = 0

    def update(self, outputs, targets):
        self.count += len(targets)

    def compute(self):
        return self.count


class Wants:
    def __init__(self, width):
        self.width = width

    reset = update = compute = None


rows = Rows()
"""
MEASURED = ["--metric", "measures.py:margin", "--metric", "n=measures.py:Rows"]


def test_metrics_of_ones_own(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "measures.py").write_text(METRICS)
    assert train(*MEASURED, "--metric", "macro_f1") == 0
    with biograd.load("a.h5") as run:
        assert {"test_margin", "test_n", "test_macro_f1"} <= {*run.scalars("epoch")}
        code = Configuration.of(run.config, "a.h5").code
        assert str(code["metric.margin"]) == "measures.py:margin"
        assert run.config["recipe"]["training"]["metrics"] == ["macro_f1"]
        assert run.code["metric.margin"]["measures.py"] == METRICS
        assert code["metric.n"].sha256 == hashlib.sha256(METRICS.encode()).hexdigest()
    capsys.readouterr()
    own = ["--model", "net.py:Net"]
    assert main(["resume", "a.h5", "--epochs", "2", "-q", *own]) == 2
    assert "give it, --metric margin=measures.py:margin" in said(capsys)
    assert main(["reproduce", "a.h5", "-q", *own, *MEASURED]) == 0
    assert main(["reproduce", "a.h5", "-q", *own]) == 3  # their columns are missing
    assert main(["resume", "a.h5", "--epochs", "2", "-q", *own, *MEASURED]) == 0
    assert "--metric margin=measures.py:margin" in capsys.readouterr().out
    (place / "measures.py").write_text(METRICS + "\n")
    assert main(["resume", "a.h5", "--epochs", "3", "-q", *own, *MEASURED]) == 2
    assert "measures.py of SHA-256" in said(capsys)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["measures.py:gone"], "--metric measures.py:gone: measures.py has no gone"),
        (["other.py:margin"], "there is no file other.py"),
        (["measures.py:Wants"], "metrics: Wants: is a class that is made without arguments"),
        (["measures.py:rows", "measures.py:rows"], "metrics: two are called rows"),
        (["macro_f"], "did you mean 'macro_f1'?"),
        (["accuracy"], "what the task itself reports"),
    ],
)
def test_what_is_no_metric_of_ones_own(
    given: list[str], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "measures.py").write_text(METRICS)
    assert train(*(word for text in given for word in ("--metric", text))) == 2
    assert message in said(capsys) and not Path("a.h5").exists()


def test_a_comparison_and_a_study_have_metrics(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "measures.py").write_text(METRICS)
    words = ["compare", "--models", "ann", "--estimators", "backprop", "--seeds", "1", *FAST]
    words += ["--epochs", "1", "-w", "1", "-q", "--no-control", "-o", "c", *MEASURED]
    assert main([*words, "--metric", "macro_f1"]) == 0
    found = biograd.load("c/ann-seed0.h5")
    assert {"test_margin", "test_n", "test_macro_f1"} <= {*found.summary}
    capsys.readouterr()
    again = ["compare", "--resume", "c", "-w", "1", "-q"]
    assert main(again) == 2 and "a file does not run code by itself" in said(capsys)
    assert main([*again, *MEASURED]) == 0
    (place / "study.toml").write_text(
        'dataset = "mine.npz"\nseeds = [0]\nestimator = "backprop"\nset = ["training.epochs=1"]\n'
        'metrics = ["measures.py:margin"]\n[cells.one]\nmodel = "ann"\n'
    )
    study = ["run", "study.toml", "-w", "1", "-q", "-o", "s"]
    assert main(study) == 2 and "give --allow-code" in said(capsys)
    assert main([*study, "--allow-code"]) == 0
    assert "test_margin" in biograd.load("s/one-seed0.h5").summary


# Studies -----------------------------------------------------------------------------------------


def test_compare_goes_on_and_asks_for_the_code(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--models", "net.py:Net,ann", "--estimators", "backprop", "--seeds", "1"]
    words += [
        "--epochs",
        "1",
        "-w",
        "1",
        "-o",
        "c",
        "--model-arg",
        "width=5",
        "--no-control",
        *FAST,
    ]
    assert main(words) == 0
    capsys.readouterr()
    assert main(["compare", "--resume", "c", "-w", "1", "-q"]) == 2
    assert "a file does not run code by itself" in said(capsys)
    assert main(["compare", "--resume", "c", "-w", "1", "-q", "--models", "net.py:Net"]) == 0
    assert main(["compare", "--resume", "c", "-w", "1", "-q", "--allow-code"]) == 0
    with biograd.load("c/Net-seed0.h5") as run:
        assert run.config["recipe"]["module"]["arguments"] == {"width": 5}
    (place / "net.py").write_text(NET + "\n")
    capsys.readouterr()
    assert main(words) == 2 and "was made by other code: net.py of SHA-256" in said(capsys)


def test_a_study_and_its_cells(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "study.toml").write_text(
        'dataset = "net.py:data"\nseeds = [0]\nestimator = "backprop"\n'
        'set = ["training.epochs=1"]\n'
        '[cells.one]\nmodel = "net.py:Net"\nset = ["module.arguments.width=3"]\n'
        '[cells.two]\nmodel = "net.py:Keeps"\nset = ["module.reset=reset_mem"]\n'
    )
    assert main(["run", "study.toml", "-w", "1", "-q", "-o", "s"]) == 2
    assert "give --allow-code" in said(capsys) and not (place / "s").exists()
    assert main(["run", "study.toml", "-w", "1", "-q", "-o", "s", "--allow-code"]) == 0
    assert biograd.load("s/two-seed0.h5").summary["epochs"] == 1


@pytest.mark.slow
def test_workers_get_the_class_by_file_and_name(place: Path) -> None:
    words = ["compare", "--models", "net.py:Net", "--estimators", "backprop,weak", "--seeds", "1"]
    words += ["--epochs", "1", "--no-control", *FAST]
    assert main([*words, "-w", "2", "-o", "two"]) == 0
    assert main([*words, "-w", "1", "-o", "one"]) == 0
    for name in ("backprop", "weak"):
        runs = [next(Path(folder).glob(f"*{name}-seed0.h5")) for folder in ("one", "two")]
        one, two = (biograd.load(path).checkpoint()[0] for path in runs)
        assert all(torch.equal(value, two[key]) for key, value in one.items())


@pytest.mark.slow
def test_a_search_over_arguments(place: Path) -> None:
    pytest.importorskip("optuna")
    words = ["compare", "--models", "net.py:Net", "--estimators", "backprop", "--seeds", "1"]
    words += ["--epochs", "1", "--no-control", *FAST, "-w", "1", "-o", "t"]
    assert main([*words, "--tune", "module.arguments.width=3..9", "--trials", "2"]) == 0
    found = json.loads(next(Path("t").glob("*-tuning.json")).read_text())
    width = int(found["assignments"][0].partition("=")[2])
    config = biograd.load(next(Path("t").glob("*seed0.h5"))).config
    assert config["recipe"]["module"]["arguments"] == {"width": width}


def test_compare_takes_classes_functions_and_modules(place: Path) -> None:
    def small() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))

    made = small()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    options: dict[str, Any] = {"data": "mine.npz", "epochs": 1, "seeds": 2, "control": False}
    biograd.compare([small, made, "net.py:Net"], ["backprop"], folder="c", **options)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    runs = {path.name: biograd.load(path) for path in Path("c").glob("*.h5") if "seed" in path.name}
    assert len(runs) == 6

    def begins(name: str) -> float:
        return float(runs[name].params["0.weight"]["norm"][0])

    assert begins("Sequential-seed0.h5") == begins("Sequential-seed1.h5")
    assert begins("small-seed0.h5") != begins("small-seed1.h5")
    for wrong in ([made], [small], [lambda: small()]):
        with pytest.raises(RecipeError, match="by its file and name"):
            biograd.compare(wrong, ["backprop"], folder="d", workers=2, **options)


def test_matrix_and_export(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["matrix", "--rule", "backprop", "--rule", "weak", "--model", "net.py:Net"]
    assert main([*words, "--dataset", "mine.npz", "-q", "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert [(cell["rule"], cell["status"]) for cell in cells] == [
        ("backprop", "works"),
        ("weak", "works"),
    ]
    words[-1] = "net.py:Keeps"  # it keeps a state
    assert main([*words, "--dataset", "mine.npz", "-q", "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert cells[1]["status"] == "refused" and "reset" in cells[1]["reason"]
    assert main(["matrix", "--dataset", "mine.npz"]) == 2
    assert "--dataset: only with --model" in said(capsys)
    (place / "spiking.py").write_text(
        "import biograd\ndef make(seed=0):\n    return biograd.build('spiking', 4, 3, seed=seed)\n"
    )
    assert train(model="spiking.py:make") == 0
    assert main(["export", "a.h5", "--format", "nir"]) == 2
    assert "--model spiking.py:make" in said(capsys)
    pytest.importorskip("nir")
    assert main(["export", "a.h5", "--format", "nir", "--model", "spiking.py:make"]) == 0
    assert main(["export", "a.h5", "--format", "sonata", "--model", "spiking.py:make"]) == 2


# Files of strangers ------------------------------------------------------------------------------

HOSTILE = "import pathlib\npathlib.Path('trace').touch()\n# \x1b]0;title\x07\x1b[2J\u202e\n"


def test_a_hostile_text_is_neither_run_nor_shown_raw(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train() == 0
    (place / "evil.py").write_text(HOSTILE)
    with edited("a.h5") as file:
        config = json.loads(file["config"][()])
        config["code"]["model"] |= {"place": "evil.py", "name": "Net\x1b[2J"}
        config["recipe"]["module"]["source"] = "evil.py:Net"
        for name, value in (("config", config), ("code", {"model": {"evil.py": HOSTILE}})):
            del file[name]
            file[name] = json.dumps(value)
    capsys.readouterr()
    for words in (["inspect", "a.h5"], ["inspect", "a.h5", "--source"], ["resume", "a.h5"],
                  ["inspect", "a.h5", "--json"], ["probe", "a.h5"], ["reproduce", "a.h5"],
                  ["export", "a.h5", "--format", "nir"]):  # fmt: skip
        main(words)
        shown = "".join(capsys.readouterr())
        assert not {"\x1b", "\x07", "\u202e"} & set(shown) and shown
    assert not (place / "trace").exists()


def test_a_file_calls_no_method_by_itself(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the name of a reset is taken from a run file, and no other method's."""
    text = NET.replace("def reset_mem", "def forget")
    (place / "net.py").write_text(text)
    keeps, own = {"model": "net.py:Keeps"}, ["--model", "net.py:Keeps"]
    assert train("--reset", "forget", **keeps) == 0
    assert "--model net.py:Keeps --reset forget" in capsys.readouterr().out
    assert main(["probe", "a.h5", "--draws", "2", *own]) == 2
    assert "a file calls nothing by itself: give it, --reset forget" in said(capsys)
    assert main(["probe", "a.h5", "--draws", "2", *own, "--reset", "forget"]) == 0


def test_files_of_before_are_read(place: Path) -> None:
    """Sites once stood beside the recipe, and a module had no code."""
    run = biograd.train(
        "net.py:Net", "mine.npz", epochs=1, path="a.h5", sites={"one": ["first"], "two": ["second"]}
    )
    table = json.loads(json.dumps(run.config))
    sites = table["recipe"]["module"].pop("sites")
    before = {k: v for k, v in table.items() if k != "code"} | {"sites": sites}
    found = Configuration.of(before, "a.h5")
    assert found.sites == {"one": ("first",), "two": ("second",)} and found.code == {}
    assert Configuration.of({**before, "sites": None}, "a.h5").sites is None


def test_what_it_returns_stands_in_the_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A module of (spikes, membrane) in every step, the steps first, from the console."""
    (place / "net.py").write_text(
        "from torch import nn\nimport torch\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.first, self.readout = nn.Linear(4, 5), nn.Linear(5, 3)\n\n"
        "    def forward(self, inputs):\n"
        "        course = [self.readout(torch.tanh(self.first(inputs))) for _ in range(3)]\n"
        "        return torch.stack(course), 0\n"
    )
    assert train() == 2 and "Outputs(part" in said(capsys)
    form = ["--set", "module.outputs={part=0, time_first=true, over_time='mean'}"]
    assert train(*form) == 0
    own = ["--model", "net.py:Net"]
    assert main(["resume", "a.h5", "--epochs", "2", "-q", *own]) == 0
    assert main(["reproduce", "a.h5", "-q", *own]) == 0
    assert train(*form, "--set", "module.outputs.over_time='some'") == 2
    run = biograd.load("a.h5")
    given = biograd.Outputs(part=0, time_first=True)
    text = message(RecipeError, lambda: biograd.trained(run, "net.py:Net", outputs=given))
    assert "outputs: the run's are Outputs(part=0" in text
