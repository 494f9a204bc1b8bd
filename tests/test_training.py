"""Training as people do it: rates, optimisers, parts of a batch, ending early, keeping the best.

The oracles are torch's own schedulers and optimisers, stepped by hand.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

import biograd
from biograd.configuration import TrainingRequest, configure
from biograd.data.rows.arrays import Arrays
from biograd.engine import attach
from biograd.errors import CapabilityError, RecipeError
from biograd.recipes import TrainingRecipe
from biograd.recipes.learning import OPTIMISERS
from biograd.recipes.schedules import SCHEDULES, factor
from biograd.tasks import Classes
from biograd.training import Trainer
from biograd.training.optimisers import check_optimiser

STEPS = 20
INPUTS = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(48) % 3


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def trainer(seed: int = 0, rule: biograd.Backpropagation | Any = None, **settings: Any) -> Trainer:
    engine = attach(network(), rule or biograd.Backpropagation(), task=Classes(3))
    recipe = TrainingRecipe(**{"batch_size": 12, "epochs": 3, **settings})
    return Trainer(engine, recipe, Arrays(INPUTS, LABELS), seed)


def weights(one: Trainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in one.engine.network.parameters()])


def by_torch(make: Any, warm: int = 0) -> list[float]:
    """Return the factors of a scheduler of torch, behind a warm-up in a line."""
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    rates, last = [], make(optimiser)
    if warm:
        first = lr_scheduler.LinearLR(optimiser, 0.01, 1.0, warm)
        last = lr_scheduler.SequentialLR(optimiser, [first, last], [warm])
    for _ in range(STEPS):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        last.step()
    return rates


BY_TORCH = {
    "constant": lambda steps: lambda o: lr_scheduler.ConstantLR(o, 1.0),
    "cosine": lambda steps: lambda o: lr_scheduler.CosineAnnealingLR(o, steps),
    "linear": lambda steps: lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, steps),
    "exponential": lambda steps: lambda o: lr_scheduler.ExponentialLR(o, 0.1 ** (1 / steps)),
    "step": lambda steps: lambda o: lr_scheduler.MultiStepLR(o, [steps // 2, 3 * steps // 4]),
    "plateau": lambda steps: lambda o: lr_scheduler.ConstantLR(o, 1.0),
}


@pytest.mark.parametrize("warm", [0, 4])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_those_of_torch(name: str, warm: int) -> None:
    recipe = TrainingRecipe(schedule=name, warm_up=warm / STEPS)
    found = [factor(recipe, step, STEPS) for step in range(STEPS)]
    assert found == pytest.approx(by_torch(BY_TORCH[name](STEPS - warm), warm), abs=1e-12)


def test_a_schedule_means_the_same_in_every_unit() -> None:
    recipe = TrainingRecipe(schedule="cosine", warm_up=0.1)
    for share in (0.05, 0.3, 1.0, 1.2):
        assert factor(recipe, share * 7e5, 7e5) == pytest.approx(factor(recipe, share, 1))
    assert factor(recipe, 2, 1) == factor(recipe, 1, 1)  # a last step may spend more


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimisers_are_those_of_torch_and_go_on_from_a_checkpoint(name: str) -> None:
    settings: dict[str, Any] = {"optimiser": name, "learning_rate": 0.01}
    ours = trainer(**settings)
    steps = ours.steps()
    for _ in range(5):
        next(steps)
    kept = ours.checkpoint()
    list(steps)
    again = trainer(**settings)
    again.restore(*kept)
    list(again.steps())
    assert torch.equal(weights(ours), weights(again))
    plain, loss = network(), nn.CrossEntropyLoss()
    more = {"momentum": 0.9} if name == "sgd" else {}
    kind = getattr(torch.optim, OPTIMISERS[name])
    theirs = kind(plain.parameters(), 0.01, **more, **({} if name == "rprop" else NO_DECAY))
    for epoch in range(3):
        for batch in ours._order(epoch):
            theirs.zero_grad()
            loss(plain(batch.inputs), batch.targets).backward()
            theirs.step()
    expected = torch.cat([p.detach().flatten() for p in plain.parameters()])
    torch.testing.assert_close(weights(ours), expected, rtol=1e-5, atol=1e-6)


NO_DECAY = {"weight_decay": 0.0}


def test_settings_of_an_optimiser_act() -> None:
    plain = trainer(optimiser="rmsprop")
    other = trainer(optimiser="rmsprop", optimiser_settings={"alpha": 0.5, "centered": True})
    list(plain.steps()), list(other.steps())
    assert other.optimiser.param_groups[0]["alpha"] == 0.5
    assert not torch.allclose(weights(plain), weights(other))


@pytest.mark.parametrize(
    ("optimiser", "settings", "message"),
    [
        ("adam", {"beta": 0.9}, "adam has none: did you mean 'betas'?"),
        ("adam", {"betas": [0.9, 2.0]}, "Invalid beta"),
        ("adam", {"betas": 0.9}, "adam: "),
        ("adam", {"lr": 0.1}, "has a key of its own, training.learning_rate"),
        ("adam", {"weight_decay": 0.1}, "has a key of its own, training.weight_decay"),
        ("sgd", {"momentum": 0.1}, "has a key of its own, training.momentum"),
        ("adam", {"eps": float("nan")}, "must be a finite number"),
        ("adam", {"amsgrad": 1}, "must be true or false"),
        ("adam", {"maximize": True}, "adam has none"),
        ("rmsprop", {"alpha": "x"}, "must be a finite number"),
    ],
)
def test_settings_that_an_optimiser_does_not_take(
    optimiser: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=r"training\.optimiser_settings") as caught:
        check_optimiser(TrainingRecipe(optimiser=optimiser, optimiser_settings=settings))
    assert message in str(caught.value)


@pytest.mark.parametrize("parts", [2, 3, 5, 12])
def test_parts_of_a_batch_have_its_gradient(parts: int) -> None:
    whole, divided = trainer(epochs=2), trainer(epochs=2, accumulate=parts)
    records = zip(whole.steps(), divided.steps(), strict=True)
    for one, other in records:
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
        assert other.metrics == pytest.approx(one.metrics)
    torch.testing.assert_close(weights(divided), weights(whole), rtol=1e-5, atol=1e-6)
    assert divided.passes == whole.passes


def test_more_parts_than_examples_are_refused() -> None:
    with pytest.raises(RecipeError, match="accumulate = 33 parts of 32 examples"):
        configure(TrainingRequest("ann", assignments=("training.accumulate=33",)))


def test_a_step_is_no_longer_than_asked_for() -> None:
    free = trainer(optimiser="sgd", momentum=0.0, learning_rate=1.0)
    short = trainer(optimiser="sgd", momentum=0.0, learning_rate=1.0, clip=0.01)
    before = weights(short)
    record, other = next(iter(short.steps())), next(iter(free.steps()))
    assert float((weights(short) - before).norm()) == pytest.approx(0.01, rel=1e-3)
    assert other.gradient_norm is None
    expected = float((weights(free) - before).norm())
    assert record.gradient_norm == pytest.approx(expected, rel=1e-5)


def test_steps_in_sixteen_bits_descend_with_the_parameters_in_thirty_two() -> None:
    full, half = trainer(epochs=8), trainer(epochs=8, precision="bfloat16")
    (first, *_, last), others = list(half.steps()), list(full.steps())
    assert {p.dtype for p in half.engine.network.parameters()} == {torch.float32}
    assert last.loss < first.loss
    assert first.loss != others[0].loss
    assert last.loss == pytest.approx(others[-1].loss, rel=0.05)


# --- what the validation rows decide ---------------------------------------------------------

DATA = {
    split: (INPUTS[rows], LABELS[rows])
    for split, rows in (("train", slice(0, 24)), ("validation", slice(24, 36)))
} | {"test": (INPUTS[36:], LABELS[36:])}
SHORT = ("training.batch_size=8", "training.learning_rate=0.05")


def fitted(path: Path, *settings: str, data: Any = DATA, **more: Any) -> Any:
    asked = {"epochs": 12, "estimator": "backprop", **more}
    return biograd.train(network(), data, path=path, settings=(*SHORT, *settings), **asked)


def curve(run: Any) -> list[float]:
    return [float(value) for value in run.scalars("epoch")["test_accuracy"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A training to its end, in which nothing is chosen."""
    return fitted(tmp_path_factory.mktemp("fit") / "whole.h5")


def best_of(values: list[float]) -> int:
    return values.index(max(values))


def test_the_best_weights_are_those_of_the_best_epoch(tmp_path: Path, whole: Any) -> None:
    run = fitted(tmp_path / "best.h5", "training.keep=best")
    assert curve(run) == curve(whole)
    place = best_of(curve(whole))
    assert run.summary["best_epoch"] == place + 1
    assert run.summary["test_accuracy"] == pytest.approx(curve(whole)[place])
    assert whole.summary["test_accuracy"] == pytest.approx(curve(whole)[-1])
    shorter = fitted(tmp_path / "short.h5", epochs=place + 1)
    assert run.summary["test"] == shorter.summary["test"]
    found, _ = biograd.trained(run, network(), DATA)
    kept, _ = biograd.trained(shorter, network(), DATA)
    for one, other in zip(found.parameters(), kept.parameters(), strict=True):
        assert torch.equal(one, other)


def test_training_ends_when_nothing_gets_better(tmp_path: Path, whole: Any) -> None:
    run = fitted(tmp_path / "early.h5", "training.stop_after=2")
    values = curve(whole)
    expected = next(
        number
        for number in range(1, len(values) + 1)
        if number - 1 - best_of(values[:number]) >= 2 or number == len(values)
    )
    assert len(curve(run)) == expected < len(values)
    assert curve(run) == values[:expected]
    assert run.summary["stopped"].startswith("nothing better than epoch ")
    assert (run.status, run.summary["stopped_by"]) == ("completed", "validation")


def test_a_plateau_lowers_the_rate(tmp_path: Path, whole: Any) -> None:
    run = fitted(
        tmp_path / "plateau.h5", "training.schedule=plateau", "training.wait=1",
        "training.decay=0.5",
    )  # fmt: skip
    rates = [float(value) for value in run.scalars("train_step")["learning_rate"]][::3]
    values, expected, best = curve(run), [0.05], -1.0
    for value in values[:-1]:
        expected.append(expected[-1] * (1.0 if value > best else 0.5))
        best = max(best, value)
    assert rates == pytest.approx(expected)
    assert rates[-1] < rates[0]


CHOOSING = ("training.keep=best", "training.stop_after=4", "training.schedule=plateau",
            "training.wait=1", "training.clip=1.0", "training.accumulate=2",
            "training.optimiser=nadam", "training.warm_up=0.2")  # fmt: skip


@pytest.mark.parametrize("until", [4, 9, 16])
def test_a_choice_survives_an_interruption(tmp_path: Path, until: int) -> None:
    straight = fitted(tmp_path / "a.h5", *CHOOSING)

    class Cut(biograd.Callback):
        def on_step(self, step: int, values: Any) -> None:
            if step == until:
                raise ValueError("power failure")

    with pytest.raises(ValueError, match="power failure"):
        fitted(tmp_path / "b.h5", *CHOOSING, callbacks=[Cut()])
    resumed = biograd.resume(tmp_path / "b.h5", network=network(), data=DATA)
    assert curve(resumed) == curve(straight)
    (one, meta), (other, its) = straight.checkpoint(), resumed.checkpoint()
    assert one.keys() == other.keys() and meta["selection"] == its["selection"]
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    for name in ("test", "best_epoch", "test_accuracy"):
        assert resumed.summary[name] == straight.summary[name]


def test_the_test_rows_decide_nothing(tmp_path: Path) -> None:
    noise = {**DATA, "test": (torch.randn(12, 6), torch.randint(3, (12,)))}
    one, other = (
        fitted(tmp_path / name, *CHOOSING, data=data)
        for name, data in (("a.h5", DATA), ("b.h5", noise))
    )
    tensors, others = one.checkpoint()[0], other.checkpoint()[0]
    assert all(torch.equal(value, others[name]) for name, value in tensors.items())
    assert one.summary["test"] != other.summary["test"]


@pytest.mark.parametrize(
    "setting", ["keep='best'", "stop_after=2", "schedule='plateau'"],
)  # fmt: skip
def test_nothing_is_chosen_by_the_test_rows(tmp_path: Path, setting: str) -> None:
    given = {split: DATA[split] for split in ("train", "test")}
    key = setting.partition("=")[0]
    with pytest.raises(RecipeError, match=f"training.{key} = .* has no validation rows"):
        fitted(tmp_path / "x.h5", f"training.{setting}", data=given)
    assert not list(tmp_path.iterdir())


def test_held_out_rows_leave_the_test_rows_to_the_end(tmp_path: Path) -> None:
    run = biograd.train(
        "ann", "digits", epochs=2, path=tmp_path / "run.h5",
        settings=("dataset.validation=0.2", "training.keep=best", *QUICK), control=True,
    )  # fmt: skip
    assert run.summary["evaluated_on"] == "validation"
    assert run.summary["test"]["accuracy"] != run.summary["test_accuracy"]
    plain = biograd.train("ann", "digits", epochs=2, path=tmp_path / "plain.h5", settings=QUICK)
    assert "test" not in plain.summary


QUICK = ("estimator='backprop'", "decorrelation.rule='off'", "dataset.training_examples=128")


def test_a_run_that_ended_early_is_reproduced(tmp_path: Path) -> None:
    fitted(tmp_path / "a.h5", *CHOOSING)
    found = biograd.reproduce(tmp_path / "a.h5", network(), data=DATA)
    assert found.verdict == "bits"


# --- callbacks -------------------------------------------------------------------------------


class Listener(biograd.Callback):
    def __init__(self, stop: int = 0) -> None:
        self.heard: list[tuple[str, Any]] = []
        self.stop = stop

    def on_start(self, engine: Any, path: Any) -> None:
        self.heard.append(("start", path))

    def on_step(self, step: int, values: Any) -> None:
        self.heard.append(("step", step))
        if step == self.stop:
            raise biograd.Stop("enough")

    def on_epoch(self, step: int, values: Any) -> None:
        self.heard.append(("epoch", values["test_accuracy"]))

    def on_end(self, summary: Any) -> None:
        self.heard.append(("end", summary["test_accuracy"]))


def test_callbacks_are_called_in_order(tmp_path: Path) -> None:
    listener = Listener()
    run = fitted(tmp_path / "run.h5", epochs=2, callbacks=listener)
    words = [word for word, _ in listener.heard]
    assert words == ["start", *("step", "step", "step", "epoch") * 2, "end"]
    assert listener.heard[0][1] == tmp_path / "run.h5"
    assert [v for w, v in listener.heard if w == "epoch"] == pytest.approx(curve(run))


@pytest.mark.parametrize("step", [3, 4])  # at the end of an epoch, and in one
def test_a_callback_ends_a_training_in_good_order(tmp_path: Path, step: int) -> None:
    listener = Listener(stop=step)
    run = fitted(tmp_path / "run.h5", callbacks=[listener])
    assert (run.status, run.last_step) == ("completed", step)
    assert (run.summary["stopped"], run.summary["stopped_by"]) == ("enough", "callback")
    assert listener.heard[-1] == ("end", run.summary["test_accuracy"])
    assert biograd.reproduce(tmp_path / "run.h5", network(), data=DATA).verdict == "bits"
    longer = biograd.resume(tmp_path / "run.h5", network=network(), data=DATA)
    assert longer.last_step == 36 and "stopped" not in longer.summary


def test_a_callback_that_fails_loses_nothing(tmp_path: Path) -> None:
    class Broken(biograd.Callback):
        def on_epoch(self, step: int, values: Any) -> None:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fitted(tmp_path / "run.h5", callbacks=[Broken()])
    whole = fitted(tmp_path / "whole.h5")
    run = biograd.resume(tmp_path / "run.h5", network=network(), data=DATA)
    assert curve(run) == curve(whole)


def test_a_log_hears_every_row(tmp_path: Path) -> None:
    rows: list[tuple[str, int]] = []

    def log(stream: str, step: int, values: Any) -> None:
        rows.append((stream, step))

    fitted(tmp_path / "run.h5", epochs=1, log=log)
    assert rows == [*(("train_step", step) for step in (1, 2, 3)), ("epoch", 3)]


def test_a_log_that_fails_warns_once_and_ends_no_training(tmp_path: Path) -> None:
    calls = itertools.count()

    def broken(stream: str, step: int, values: Any) -> None:
        next(calls)
        raise OSError("no route to the board")

    with pytest.warns(RuntimeWarning, match="log: OSError: no route to the board") as caught:
        run = fitted(tmp_path / "run.h5", log=broken)
    assert run.status == "completed" and next(calls) == 1 and len(caught) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"callbacks": [print]}, "is no biograd.Callback"),
        ({"log": 3}, "log: 3 is no function"),
        ({"metrics": ["macro_f"]}, "training.metrics = 'macro_f': did you mean 'macro_f1'?"),
        ({"metrics": {"mine": 3}}, "metrics: mine: a name, a function, or an object"),
        ({"metrics": ["accuracy"]}, "what the task itself reports"),
        ({"metrics": ["correlation"]}, "correlation is of numbers, not of Classes"),
    ],
)
def test_watchers_that_cannot_watch(tmp_path: Path, given: Any, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        fitted(tmp_path / "run.h5", **given)
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_rules_that_sixteen_bits_break_are_refused() -> None:
    one = trainer(rule=biograd.PredictiveCoding(), precision="bfloat16")
    with pytest.raises(CapabilityError, match=r"what torch\.bfloat16 rounds away"):
        list(one.steps())
