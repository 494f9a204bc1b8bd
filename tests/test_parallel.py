"""Two processes that divide every batch are one process with the whole of it.

One pair of processes does everything once and leaves what it found in files (fixture ``pair``);
the tests compare that with what one process finds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from networks_for_tests import CLASSES, batch, build, cannot, spiking
from torch import Tensor, nn

import biograd
from biograd import LocalLosses, ranks
from biograd.data import Arrays
from biograd.decorrelation import Decorrelation
from biograd.decorrelation.rules import RULES
from biograd.engine import attach
from biograd.errors import CapabilityError, RecipeError
from biograd.estimators import ESTIMATORS, Backpropagation, Estimator, make
from biograd.ranks import parallel
from biograd.ranks.parallel import Share
from biograd.recipes import TrainingRecipe
from biograd.training import Trainer, evaluate

ROWS, STEPS = 13, 3
COPIES, PARAMETERS = 9, 74
"""Of weight perturbation, and of the network ``mlp``."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A training of a few steps, small enough for a test."""

    rule: str
    network: Callable[[], nn.Module] = lambda: build("mlp")
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    decorrelate: Mapping[str, Any] | None = None
    local: str | None = None
    rows: int = ROWS
    epochs: int = 1

    def trainer(self) -> Trainer:
        decorrelate = None if self.decorrelate is None else Decorrelation(**self.decorrelate)
        engine = attach(
            self.network(),
            make(self.rule, self.settings),
            decorrelate,
            None if self.local is None else LocalLosses(self.local),  # type: ignore[arg-type]
            seed=3,
        )
        recipe = TrainingRecipe(
            epochs=self.epochs,
            batch_size=self.rows,
            optimiser="sgd",
            momentum=0.9,
            learning_rate=0.05,
        )
        return Trainer(engine, recipe, Arrays(*batch(STEPS * self.rows)), seed=5)

    def found(self, between: Callable[[Trainer], None] = lambda _: None) -> dict[str, Tensor]:
        """Return all that a training leaves: parameters, state, figures, results.

        Args:
            between: what is done after each step.
        """
        trainer, records = self.trainer(), []
        for record in trainer.steps():
            records.append(record)
            between(trainer)
        found = trainer.checkpoint()[0]
        for record in records:
            figures = (record.loss, record.metrics["accuracy"], record.informative)
            found[f"record.{record.step}"] = torch.tensor(figures, dtype=torch.float64)
        results = evaluate(trainer.engine, trainer.source, batch_size=8)
        found["evaluated"] = torch.tensor(list(results.values()), dtype=torch.float64)
        found["passes"] = torch.tensor(trainer.passes)
        for name, value in trainer.engine.estimator.measures().items():
            found[f"measure.{name}"] = torch.tensor(value, dtype=torch.float64)
        return found


def poisson() -> nn.Module:
    return spiking(encoding={"kind": "poisson", "max_rate_hz": 200.0, "duration_ms": 10.0})


def brian2() -> nn.Module:
    return spiking("brian2", encoding={"duration_ms": 5.0})


SETTINGS: dict[str, dict[str, Any]] = {"weight_perturbation": {"copies": COPIES, "sigma": 0.1}}
MANY = ("weak", "weight_perturbation", "backprop")
CASES: dict[str, Case] = {
    name: Case(name, settings=SETTINGS.get(name, {}))
    for name in ESTIMATORS
    if ESTIMATORS[name].divides
}
CASES |= {
    f"{name}, spikes": Case(name, poisson, SETTINGS.get(name, {}))
    for name in CASES
    if not cannot("torch", name)
}
CASES |= {f"decorrelation {rule}": Case("weak", decorrelate={"rule": rule}) for rule in RULES}
CASES |= {f"{name}, dropout": Case(name, lambda: build("dropout")) for name in MANY}
CASES |= {
    f"{name}, one row": Case(name, decorrelate={}, rows=1)
    for name in ("weak", "decoupling", "weight_mirror")
}
CASES |= {f"{name}, local loss": Case(name, local="cross_entropy") for name in MANY}
CASES |= {f"{name}, rows compared": Case(name, local="predsim") for name in MANY}
CASES |= {f"{name}, Brian2": Case(name, brian2, {"copies": 5}) for name in MANY[:2]}
CASES |= {
    "decorrelation of a sample": Case("backprop", decorrelate={"sample": 0.6, "centre": True}),
    "decorrelation of patches": Case(
        "backprop", lambda: build("grouped_convolution"), decorrelate={"sample": 0.6}
    ),
    "decorrelation, copies": Case("weight_perturbation", poisson, {"copies": 3}, {}),
    "batch normalisation, copies": Case("weight_perturbation", lambda: build("batch_norm")),
    "decorrelation of spikes": Case("weak", poisson, decorrelate={}),
    "rows compared, tangents": Case("forward_gradient_activity", local="predsim"),
    "weights of one's own": Case("backprop", lambda: build("mlp", seed=ranks.rank())),
    "decoupling, twice": Case("decoupling", epochs=2),
    "arousal": Case("backprop", poisson, {"arousal": 0.1}),
    "e-prop, random": Case("eprop", poisson, {"feedback": "random"}),
    "hard negatives": Case("forward_forward", settings={"negatives": "hard"}),
    "sign symmetry, batch": Case("sign_symmetry", settings={"magnitudes": "batch"}),
    "orthogonal tangents": Case("forward_gradient_activity", settings={"tangents": "orthogonal"}),
    "shared tangents": Case("forward_gradient_activity", settings={"shared": True}),
    "ranks of losses": Case("weight_perturbation", settings={"shaping": "rank"}),
}


def check_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """All that two trainings left is the same: random streams by the bit, else to 1e-10.

    Shares of a batch (accuracies) are counted in single precision.
    """
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value.is_floating_point():
            scale = max(1.0, float(value.abs().max())) if value.numel() else 1.0
            error = float((found[name] - value).abs().max()) if value.numel() else 0.0
            tolerance = 1e-7 if name.startswith("record.") else 1e-10
            assert error <= tolerance * scale, f"{name}: {error}"
        else:
            assert torch.equal(found[name], value), name


# What the pair does ------------------------------------------------------------------------------


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _join(rank: int, size: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    ranks.join()


def _broken(case: Case, name: str, value: Any) -> dict[str, Tensor] | str:
    """Return what a training leaves when a part of the division is missing."""
    kept = getattr(parallel, name)
    setattr(parallel, name, value)
    try:
        return case.found()
    except biograd.BiogradError as error:
        return str(error)
    finally:
        setattr(parallel, name, kept)


def _traffic(case: Case) -> list[int]:
    """Return what each step of a training hands to the other rank, in bytes."""
    steps = case.trainer().steps()
    found = []
    for _ in range(STEPS):
        before = ranks.traffic()
        next(steps)
        found.append(ranks.traffic() - before)
    return found


def _stopped(rank: int) -> list[tuple[int, int]]:
    """Return steps and the signals that were heard of; one rank is asked in the second step."""
    trainer = Case("backprop").trainer()
    found = []
    for record in trainer.steps():
        found.append((record.step, record.stop))
        trainer.asked = [15] if rank == 1 and record.step == 1 else []
    return found


def _restored(trainer: Trainer) -> None:
    """Go back to where the training is, from tensors that come in another order on each rank."""
    tensors, meta = trainer.checkpoint()
    names = sorted(tensors, reverse=ranks.rank() == 1)
    trainer.restore({name: tensors[name] for name in names}, meta)


def _pair(rank: int, port: int, folder: str) -> None:
    _join(rank, 2, port)
    found = {name: case.found() for name, case in CASES.items()}
    found["restored"] = CASES["weak"].found(_restored)
    broken = {
        "gradients": _broken(CASES["backprop"], "average_gradients", lambda _: None),
        "draws": _broken(CASES["weak"], "rows", lambda draw, count, axis=0: draw(count)),
        "scales": _broken(CASES["weak"], "average", lambda values: values),
        "gathering": _broken(CASES["decorrelation kappa"], "gather", lambda values: values),
        "copies": _broken(
            CASES["weight_perturbation"],
            "exchange",
            lambda own, count, values: values.mean(0).expand(count, -1),
        ),
    }
    numbers = {
        "copies": _traffic(CASES["weight_perturbation"]),
        "examples": _traffic(CASES["backprop"]),
        "stopped": _stopped(rank),
        "table": ranks.table([float(rank), 2.0]),
        "first": ranks.from_first(lambda: b"only of rank 0").decode(),
    }
    torch.save({"found": found, "broken": broken}, Path(folder) / f"{rank}.pt")
    (Path(folder) / f"{rank}.json").write_text(json.dumps(numbers))
    ranks.leave()


@dataclasses.dataclass(frozen=True)
class Pair:
    """What two processes left behind."""

    found: list[dict[str, dict[str, Tensor]]]
    broken: list[dict[str, Any]]
    numbers: list[dict[str, Any]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    torch.multiprocessing.spawn(_pair, (_free_port(), str(folder)), nprocs=2)
    left = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    numbers = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return Pair([one["found"] for one in left], [one["broken"] for one in left], numbers)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_are_one_process(name: str, pair: Pair) -> None:
    expected = CASES[name].found()
    for found in pair.found:
        check_same(found[name], expected)
    moved = [v for k, v in expected.items() if k.startswith("optimiser.")]
    assert any(bool(value.any()) for value in moved)  # something was learned


def test_restored_ranks_are_one_process(pair: Pair) -> None:
    for found in pair.found:
        check_same(found["restored"], CASES["weak"].found())


@pytest.mark.parametrize("name", CASES)
def test_both_ranks_have_the_same_bits(name: str, pair: Pair) -> None:
    first, second = (found[name] for found in pair.found)
    for key in first:
        if key.startswith(("network.", "engine.scale.", "optimiser.")):
            assert torch.equal(first[key], second[key]), key


@pytest.mark.parametrize(
    ("part", "case"),
    [
        ("gradients", "backprop"),
        ("draws", "weak"),
        ("scales", "weak"),
        ("gathering", "decorrelation kappa"),
        ("copies", "weight_perturbation"),
    ],
)
def test_without_a_part_of_it_the_comparison_fails(part: str, case: str, pair: Pair) -> None:
    expected = CASES[case].found()
    for broken in pair.broken:
        if isinstance(broken[part], str):
            assert "are no longer the same" in broken[part]
        else:
            with pytest.raises(AssertionError):
                check_same(broken[part], expected)


def test_of_perturbed_parameters_only_losses_travel(pair: Pair) -> None:
    """Eight bytes for each noisy copy, and seven figures a step; five more at the epoch's end."""
    step = 8 * (COPIES - 1) + 8 * 7
    assert step < 8 * PARAMETERS
    for numbers in pair.numbers:
        assert numbers["copies"] == [step, step, step + 8 * 5]


def test_of_examples_the_gradient_travels(pair: Pair) -> None:
    """One number a parameter, one a tensor, one a site, and seven figures."""
    network = build("mlp")
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS
    tensors = len(list(network.parameters()))
    step = 8 * (PARAMETERS + tensors + 3 + 7)
    for numbers in pair.numbers:
        assert numbers["examples"] == [step, step, step + 8 * 5]


def test_all_ranks_stop_after_the_same_step(pair: Pair) -> None:
    for numbers in pair.numbers:
        assert numbers["stopped"] == [[1, 0], [2, 15], [3, 0]]


def test_numbers_and_bytes_of_others(pair: Pair) -> None:
    for numbers in pair.numbers:
        assert numbers["table"] == [[0.0, 2.0], [1.0, 2.0]]
        assert numbers["first"] == "only of rank 0"


# One process ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("total", [1, 2, 5, 64])
def test_shares_cover_a_batch_once(total: int, size: int) -> None:
    shares = [Share.of(total, rank, size) for rank in range(size)]
    covered = [row for own in shares if own.weight for row in range(total)[own.rows]]
    assert covered == list(range(total))
    assert sum(own.weight for own in shares) == pytest.approx(1, abs=1e-15)
    assert all(len(range(total)[own.rows]) for own in shares)  # nobody has nothing to do


@pytest.mark.parametrize("axis", [0, 1])
def test_own_rows_of_a_draw(axis: int) -> None:
    def draw(count: int) -> Tensor:
        whole = torch.arange(float(count))[:, None].expand(-1, 2)
        return whole if axis == 0 else whole.T

    with parallel.sharing(Share.of(5, 1, 2)):
        own = parallel.rows(draw, 2, axis)
        twice = parallel.rows(draw, 4, axis)  # each example has two rows, side by side
        other = parallel.rows(draw, 3, axis)  # nothing that examples have
    alone = parallel.rows(draw, 2, axis)
    values = [t.select(1 - axis, 0).tolist() for t in (own, twice, other, alone)]
    assert values == [[3, 4], [6, 7, 8, 9], [0, 1, 2], [0, 1]]


def test_copies_are_dealt_once() -> None:
    taken = []
    for rank in range(3):
        with parallel.sharing(Share.of(4, rank, 3, "copies")) as own:
            assert own.rows == slice(0, 4)
            place = parallel.dealt(8)
            assert place is not None
            taken += list(range(8))[place]
            assert parallel.rows(lambda count: torch.zeros(count), 4).shape == (4,)
    assert taken == list(range(8))
    assert parallel.dealt(8) is None


def test_alone_nothing_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ranks.KNOWN:
        monkeypatch.delenv(name, raising=False)
    assert ranks.started() == (0, 1)
    with ranks.together():
        assert (ranks.rank(), ranks.size(), ranks.traffic()) == (0, 1, 0)
        assert ranks.speaks()
    assert ranks.command("resume a.h5") == "biograd resume a.h5"
    assert not torch.distributed.is_initialized()


class Unsaid(Backpropagation):
    """A rule that claims nothing."""

    divides = ""


def test_what_cannot_be_divided_is_refused() -> None:
    assert Estimator.divides == ""
    with pytest.raises(CapabilityError, match="Unsaid does not say what several processes"):
        attach(build("mlp"), Unsaid()).check_ranks()
    with pytest.raises(CapabilityError, match=r"1 \(BatchNorm1d\) ties the examples"):
        attach(build("batch_norm"), Backpropagation()).check_ranks()
    attach(build("batch_norm"), make("weight_perturbation")).check_ranks()
    attach(build("mlp"), Backpropagation()).check_ranks()


def test_every_rule_says_what_it_divides() -> None:
    assert {rule.divides for rule in ESTIMATORS.values()} == {"examples", "copies"}
    assert CLASSES and len(CASES) > 2 * len(ESTIMATORS)


@pytest.fixture
def torchrun_environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def given(rank: int, size: int, **others: str) -> None:
        values = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "h"}
        for name, value in (values | {"MASTER_PORT": "1"} | others).items():
            monkeypatch.setenv(name, value)

    return given


def test_only_the_first_rank_speaks(torchrun_environment: Callable[..., None]) -> None:
    torchrun_environment(0, 4, LOCAL_WORLD_SIZE="2")
    assert ranks.speaks()
    line = "torchrun --nnodes 2 --nproc-per-node 2 -m biograd resume a.h5"
    assert ranks.command("resume a.h5") == line
    torchrun_environment(3, 4)
    assert not ranks.speaks()


def test_other_commands_are_refused_under_torchrun(
    torchrun_environment: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    from biograd.__main__ import main

    torchrun_environment(0, 2)
    with pytest.raises(RecipeError, match="is work for one process, torchrun started 2"):
        ranks.refuse("this")
    assert main(["list", "models"]) == 2
    assert capsys.readouterr().err.startswith("biograd: `biograd list` is work for one process")


# The console under torchrun ---------------------------------------------------------------------

ROOT = Path(__file__).parent.parent
EPOCHS = 8
SETTINGS_OF_RUNS = ("network.dtype=float64", "training.optimiser=sgd", "training.momentum=0.9")
"""Adam would make as much of a gradient that is nothing but rounding as of any other."""
OPTIONS = ("--model", "ann", *(word for text in SETTINGS_OF_RUNS for word in ("--set", text)))


def _torchrun(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(_free_port()), *words]
    known = {k: v for k, v in os.environ.items() if k not in ranks.KNOWN}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=known | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _lines(stderr: str) -> list[str]:
    """Return what biograd said; torchrun says a lot more."""
    return [line for line in stderr.splitlines() if line.startswith("biograd: ")]


def _ended(process: subprocess.Popen[str]) -> tuple[int, str, list[str]]:
    stdout, stderr = process.communicate(timeout=100)
    return process.returncode, stdout, _lines(stderr)


def _alone(folder: Path, epochs: int) -> Any:
    return biograd.train("ann", path=folder / "1.h5", settings=SETTINGS_OF_RUNS, epochs=epochs)


def _metrics(run: Any) -> dict[str, Any]:
    table = run.scalars("epoch")
    return {name: table[name] for name in ("train_loss", "train_accuracy", "test_loss")}


@pytest.mark.slow
def test_torchrun_gives_the_results_of_one_process(tmp_path: Path) -> None:
    words = ("-m", "biograd", "train", *OPTIONS, "--epochs", "3", "-o", "2.h5", "--json")
    code, stdout, said = _ended(_torchrun(tmp_path, *words))
    assert (code, said) == (0, [])
    summary, expected = json.loads(stdout), _alone(tmp_path, 3)
    found = biograd.load(tmp_path / "2.h5")
    assert summary["ranks"] == found.summary["ranks"] == 2
    for name in ("test_accuracy", "train_accuracy", "forward_passes"):
        assert summary[name] == expected.summary[name], name
    assert summary["test_loss"] == pytest.approx(expected.summary["test_loss"], rel=1e-10)
    for name, values in _metrics(found).items():
        assert values == pytest.approx(_metrics(expected)[name], rel=1e-7), name
    one, two = expected.checkpoint()[0], found.checkpoint()[0]
    check_same(two, one)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_rank_is_named_and_the_run_goes_on(lost: int, tmp_path: Path) -> None:
    words = ("train", *OPTIONS, "--epochs", str(EPOCHS), "-o", "2.h5", "--quiet")
    process = _torchrun(tmp_path, "-m", "biograd", *words)
    os.kill(_begun(process, tmp_path / "2.h5.parts", lost), signal.SIGKILL)
    code, _, said = _ended(process)
    assert code == 1 and len(said) == 1
    assert said[0].startswith(f"biograd: rank {lost} was lost after step ")
    resume = "; go on with: torchrun --nproc-per-node 2 -m biograd resume 2.h5"
    assert " is saved; " in said[0] and said[0].endswith(resume)
    if lost:
        summary = biograd.resume(tmp_path / "2.h5").summary  # alone
    else:
        code, stdout, said = _ended(
            _torchrun(tmp_path, "-m", "biograd", "resume", "2.h5", "--json")
        )
        assert (code, said) == (0, [])
        summary = json.loads(stdout)
    expected = _alone(tmp_path, EPOCHS).summary
    assert summary["test_accuracy"] == expected["test_accuracy"]
    assert summary["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-8)


def _begun(process: subprocess.Popen[str], parts: Path, rank: int) -> int:
    """Return the process of a rank once the run has saved its second epoch."""
    commits = parts / "commits.jsonl"
    while not commits.is_file() or commits.read_text().count("\n") < 3:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    return next(child for child, own in _children(process.pid) if own == rank)


def _children(parent: int) -> Iterator[tuple[int, int]]:
    """Yield the processes that torchrun started, with their ranks."""
    for task in Path(f"/proc/{parent}/task").iterdir():
        for child in (task / "children").read_text().split():
            words = Path(f"/proc/{child}/environ").read_text().split("\0")
            found = dict(word.split("=", 1) for word in words if "=" in word)
            yield int(child), int(found["RANK"])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_torchrun_is_asked_to_stop(number: signal.Signals, tmp_path: Path) -> None:
    words = ("train", *OPTIONS, "--epochs", str(EPOCHS), "-o", "2.h5", "--quiet")
    process = _torchrun(tmp_path, "-m", "biograd", *words)
    _begun(process, tmp_path / "2.h5.parts", 0)
    process.send_signal(number)
    code, _, said = _ended(process)
    assert code != 0 and len(said) == 1
    assert "all of it is saved; go on with: torchrun --nproc-per-node 2 -m biograd" in said[0]
    step = int(said[0].split("after step ")[1].split(",")[0])
    with biograd.load(tmp_path / "2.h5.parts") as run:
        assert run.checkpoint()[1]["step"] == step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--model", "anx"), "biograd: no model 'anx': did you mean 'ann'?"),
        (("--estimator", "weeak"), "biograd: spiking: estimator = 'weeak': did you mean 'weak'?"),
        (
            ("--model", "ann", "--estimator", "backprop", "--set", "training.learning_rate=1e30"),
            "biograd: step 2: the current of blocks.0.synapse, or its square, is not finite: lower",
        ),
    ],
)
def test_an_error_of_all_is_said_once(words: tuple[str, ...], line: str, tmp_path: Path) -> None:
    code, _, said = _ended(_torchrun(tmp_path, "-m", "biograd", "train", *words, "--quiet"))
    assert code == 1 and len(said) == 1
    assert said[0].startswith(line)


SCRIPT = """
import os, pathlib, sys, time, torch, biograd
from biograd.errors import BiogradError

class Failing(torch.nn.Sequential):
    calls = 0
    def forward(self, inputs):
        self.calls += 1
        if os.environ["RANK"] == "1" and self.calls > 60:
            raise BiogradError("the disk of this machine is full")
        return super().forward(inputs)

network = Failing(torch.nn.Flatten(), torch.nn.Linear(64, 10), torch.nn.Linear(10, 10))
try:
    biograd.train(network, "digits", estimator="backprop", epochs=3, path="2.h5")
except BiogradError as error:
    told, deadline = pathlib.Path("told"), time.monotonic() + 30
    if os.environ["RANK"] == "0":
        told.write_text("biograd: " + str(error))
    while not told.exists() and time.monotonic() < deadline:
        time.sleep(0.02)  # the first is told while the other is still there
    sys.exit(error.exit_code)
"""


@pytest.mark.slow
def test_the_error_of_one_rank_is_told_by_the_first(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    code, _, _ = _ended(_torchrun(tmp_path, "script.py"))
    assert code == 1
    line = "biograd: the disk of this machine is full (rank 1)"
    assert (tmp_path / "told").read_text() == line
