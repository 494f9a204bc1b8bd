"""The probe: right numbers, no trace, and advice that finds what is broken."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from networks_for_tests import (
    TrueCredit,
    autograd,
    batch,
    build,
    drawn,
    linear_loss,
    linear_stack,
    opaque,
    spiking,
)
from torch import Tensor, nn

import biograd
from biograd import experiment
from biograd.__main__ import main
from biograd.decorrelation import Decorrelation
from biograd.diagnosis import FiniteDifference, probe
from biograd.diagnosis.activity import population
from biograd.diagnosis.quality import Sums, quality
from biograd.engine import Engine, attach
from biograd.errors import CapabilityError, RecipeError
from biograd.estimators import ESTIMATORS, Estimator, WeakGradient, make
from biograd.local import LocalLosses
from biograd.randomness import generator

NETWORKS = ("mlp", "dropout", "batch_norm", "torch", "brian2")


def network(name: str) -> nn.Module:
    if name in ("torch", "snntorch", "brian2"):
        return spiking(name)
    return build("mlp" if name == "local" else name)


def serves(estimator: type[Estimator], name: str) -> bool:
    """Whether the rule declares that it works there."""
    if name == "batch_norm" and not estimator.batch_norm:
        return False
    spikes = name in ("torch", "brian2")
    return not (spikes and estimator is ESTIMATORS["decoupling"])  # spikes are no targets


CASES = [
    (name, estimator)
    for name in NETWORKS
    for estimator in ESTIMATORS
    if serves(ESTIMATORS[estimator], name)
]
assert len(CASES) >= 20
CASES += [("local", name) for name in ("backprop", "weak", "forward_gradient_activity", "eprop")]


# No trace -----------------------------------------------------------------------------------------


def trained(name: str, estimator: Estimator, look: Callable[..., Any] | None) -> dict[str, Tensor]:
    """Train for three steps, probing before, between and within them; return all state."""
    inputs, targets = batch(12)
    x, y, index = inputs[:8], targets[:8], torch.arange(8)
    decorrelate = Decorrelation("kappa", rate=1e-2, sample=0.5, centre=True)
    local = LocalLosses() if name == "local" else None
    engine = attach(network(name), estimator, decorrelate, local, seed=3)
    torch.manual_seed(5)

    def glance(optimiser: torch.optim.Optimizer | None = None) -> None:
        if look is not None:
            look(engine, inputs[4:], targets[4:], torch.arange(4, 12), optimiser)

    glance()
    engine.prepare(x, y)
    optimiser = torch.optim.Adam(engine.parameters(), 1e-2)
    for _ in range(3):
        glance(optimiser)
        result = engine(x, y, index)
        glance(optimiser)
        result.backward()
        glance(optimiser)
        optimiser.step()
        optimiser.zero_grad()
        engine.update()
    found = {f"network.{k}": v.clone() for k, v in engine.network.state_dict().items()}
    found |= {f"engine.{k}": v for k, v in engine.state().items()}
    for number, state in optimiser.state_dict()["state"].items():
        found |= {f"optimiser.{number}.{k}": torch.as_tensor(v) for k, v in state.items()}
    return found | {"global": torch.get_rng_state()}


def look(
    engine: Engine,
    x: Tensor,
    y: Tensor,
    index: Tensor,
    optimiser: torch.optim.Optimizer | None,
) -> None:
    difference = "vjp" not in engine.substrate.capabilities
    probe(
        engine,
        x,
        y,
        index,
        draws=2,
        reference=FiniteDifference(2) if difference else "auto",
        optimiser=optimiser,
        neighbours=engine.step == 1,
    )


def differences(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys() and len(a) > 10
    return [key for key in a if not torch.equal(a[key], b[key])]


@pytest.mark.parametrize(
    ("name", "estimator"),
    [
        # one rule stands for all on the slow simulator
        pytest.param(*case, marks=pytest.mark.slow)
        if case[0] == "brian2" and case[1] != "weak"
        else case
        for case in CASES
    ],
)
def test_training_with_probes_in_between_is_the_same_bit_by_bit(name: str, estimator: str) -> None:
    copies = {"copies": 5} if "copies" in signature(ESTIMATORS[estimator]).parameters else {}
    plain = trained(name, make(estimator, copies), None)
    assert differences(plain, trained(name, make(estimator, copies), look)) == []


def step_without_care(engine: Engine, x: Tensor, y: Tensor, *_: object) -> None:
    engine(x, y)


@pytest.mark.parametrize("name", ["dropout", "batch_norm"])
def test_a_trace_would_be_noticed(name: str) -> None:
    plain = trained(name, make("weak"), None)
    assert differences(plain, trained(name, make("weak"), step_without_care))


# Numbers ------------------------------------------------------------------------------------------


def vectors(draws: int, size: int = 30, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a reference and draws that are 0.8 of it with an offset and noise."""
    stream = generator(seed, "test vectors")
    g = torch.randn(size, generator=stream, dtype=torch.float64)
    offset = 0.2 * torch.randn(size, generator=generator(1), dtype=torch.float64)
    noise = torch.randn(draws, size, generator=stream, dtype=torch.float64)
    return g, 0.8 * g + offset + 0.5 * noise


def summed(g: Tensor, draws: Tensor, parameters: int | None = None) -> Sums:
    sums = Sums(g, parameters or len(g), len(draws))
    for draw in draws:
        sums.add(draw)
    return sums


@pytest.mark.parametrize("draws", [2, 7, 16, 40])
def test_the_measures_are_what_they_say(draws: int) -> None:
    g, found = vectors(draws)
    g[3] = 0
    measured = quality([summed(g, found)])
    mean, size = found.mean(0), g @ g
    variance = float(found.var(0).sum() / size)
    close = lambda value: pytest.approx(float(value), rel=1e-10)  # noqa: E731
    assert measured.gradient == close(size.sqrt())
    assert measured.cosine.value == close(torch.cosine_similarity(found, g[None]).mean())
    assert measured.cosine_of_mean.value == close(torch.cosine_similarity(mean, g, dim=0))
    assert measured.norm_ratio.value == close((found.norm(dim=1) / g.norm()).mean())
    assert measured.slope.value == close(mean @ g / size)
    assert measured.variance.value == close(variance)
    assert measured.squared_bias.value == close((mean - g).square().sum() / size - variance / draws)
    agree = (found.sign() == g.sign())[:, g != 0].double().mean()
    assert measured.sign_agreement.value == close(agree)


def test_layers_pool_like_one_long_vector() -> None:
    g, found = vectors(20)
    parts = [summed(g[:12], found[:, :12]), summed(g[12:], found[:, 12:])]
    whole, pooled = quality([summed(g, found)]), quality(parts)
    for name, value in vars(whole).items():
        other = getattr(pooled, name)
        if isinstance(value, int | float):
            assert other == pytest.approx(value)
        else:
            assert (other.value, other.error) == pytest.approx((value.value, value.error))


def test_a_sample_of_a_layer_counts_for_all_of_it() -> None:
    g, found = vectors(20)
    sample = quality([summed(g, found, 10 * len(g)), summed(g[:5], found[:, :5])])
    copied = quality([*(summed(g, found) for _ in range(10)), summed(g[:5], found[:, :5])])
    assert sample.cosine.value == pytest.approx(copied.cosine.value)
    assert sample.squared_bias.value == pytest.approx(copied.squared_bias.value)
    assert sample.parameters == copied.parameters and sample.compared == len(g) + 5


@pytest.mark.parametrize("draws", [12, 48])
def test_the_standard_errors_are_those_of_repetitions(draws: int) -> None:
    """The spread over 200 repetitions is the mean standard error within a quarter."""
    found = [quality([summed(*vectors(draws))])]
    g, _ = vectors(2)
    stream = generator(9)
    offset = 0.2 * torch.randn(len(g), generator=generator(1), dtype=torch.float64)
    for _ in range(200):
        noise = torch.randn(draws, len(g), generator=stream, dtype=torch.float64)
        found.append(quality([summed(g, 0.8 * g + offset + 0.5 * noise)]))
    for name in ("cosine", "cosine_of_mean", "norm_ratio", "slope", "squared_bias", "variance"):
        measures = [getattr(one, name) for one in found]
        spread = torch.tensor([measure.value for measure in measures]).std()
        error = torch.tensor([measure.error for measure in measures]).mean()
        assert 0.75 < float(error / spread) < 1.34, name


def linear_engine(estimator: Estimator, seed: int = 0) -> Engine:
    return attach(drawn(linear_stack()), estimator, loss=linear_loss, seed=seed)


@pytest.mark.parametrize("estimator", [make("backprop"), TrueCredit()])
def test_the_true_gradient_has_neither_bias_nor_variance(estimator: Estimator) -> None:
    x, y = batch()
    diagnosis = probe(attach(build("mlp"), estimator), x, y)
    for found in (diagnosis.overall, *(layer.quality for layer in diagnosis.layers.values())):
        for measure in (found.cosine, found.cosine_of_mean, found.norm_ratio, found.slope):
            assert measure.value == pytest.approx(1, abs=1e-12)
        assert found.sign_agreement.value == 1
        assert abs(found.squared_bias.value) < 1e-12 and abs(found.variance.value) < 1e-12
    truth = autograd(build("mlp"), x, y)
    norm = math.sqrt(sum(float(value.square().sum()) for value in truth.values()))
    assert diagnosis.overall.gradient == pytest.approx(norm, rel=1e-10)
    assert diagnosis.overall.parameters == sum(value.numel() for value in truth.values())


def test_a_known_error_is_measured() -> None:
    x, y = batch()
    found = probe(attach(build("mlp"), TrueCredit(factor=1.5)), x, y).hidden
    assert found is not None
    assert found.cosine.value == pytest.approx(1) and found.slope.value == pytest.approx(1.5)
    assert found.squared_bias.value == pytest.approx(0.25, abs=1e-10)


def test_the_variance_of_node_perturbation_is_that_of_theory() -> None:
    """On a linear loss ``cov g_b = (|g_b|^2 + g_b g_b') / m`` for each example on its own."""
    copies, (x, y) = 6, batch(16)
    network = drawn(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)))
    engine = attach(network, WeakGradient(copies, method="baseline"), loss=linear_loss)
    measured = probe(engine, x, y, draws=600, neighbours=False).layers["0"].quality
    truth = autograd(network, x, y, linear_loss)
    with torch.enable_grad():
        z = network[0](x).requires_grad_()
        (delta,) = torch.autograd.grad(linear_loss(network[1](z), y).mean(), z)
    per_example = (1 + x.square().sum(1)) * delta.square().sum(1) * (5 + 1) / (copies - 1)
    size = sum(float(truth[name].square().sum()) for name in ("0.weight", "0.bias"))
    assert measured.variance.value == pytest.approx(float(per_example.sum()) / size, rel=0.05)
    assert abs(measured.squared_bias.value) < 4 * measured.squared_bias.error


@pytest.mark.parametrize("name", ["mlp", "residual", "recurrent_cell", "grouped_convolution"])
def test_finite_differences_find_the_gradient(name: str) -> None:
    x, y = batch()
    engine = attach(build(name), make("backprop"))
    diagnosis = probe(engine, x, y, reference=FiniteDifference(10, step=1e-4), draws=2)
    assert "central differences" in diagnosis.reference
    for layer in diagnosis.layers.values():
        assert layer.quality.compared == min(10, layer.quality.parameters)
        assert layer.quality.cosine.value == pytest.approx(1, abs=1e-6)
        assert layer.quality.slope.value == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["torch", "brian2"])
def test_local_losses_have_a_reference_of_their_own(name: str) -> None:
    """Each block is compared with the gradient of the loss that trains it."""
    x, y = batch()
    engine = attach(build("mlp"), make("backprop"), local=LocalLosses())
    found = probe(engine, x, y, reference=FiniteDifference(10, step=1e-4), draws=2)
    assert "of the local losses" in found.reference
    exact = probe(engine, x, y, draws=2)
    whole = probe(attach(build("mlp"), make("backprop")), x, y, draws=2)
    for site, layer in exact.layers.items():
        assert found.layers[site].quality.slope.value == pytest.approx(1, abs=1e-5)
        same = layer.quality.gradient == pytest.approx(whole.layers[site].quality.gradient)
        assert same is (layer.kind == "readout")
    spikes = attach(spiking(name), make("weak", {"copies": 65}), local=LocalLosses())
    measured = probe(spikes, *batch(32), reference=FiniteDifference(20)).hidden
    assert measured is not None and measured.cosine.value > 0.95
    assert measured.norm_ratio.value == pytest.approx(1, abs=0.3)


def test_finite_differences_agree_in_torch_and_in_brian2() -> None:
    x, y = batch()
    found = [
        probe(attach(spiking(name), make("weak")), x, y, reference="finite_difference", draws=2)
        for name in ("torch", "brian2")
    ]
    for name, layer in found[0].layers.items():
        other = found[1].layers[name]
        assert other.quality.gradient == pytest.approx(layer.quality.gradient, rel=1e-9)
        assert other.quality.cosine.value == pytest.approx(layer.quality.cosine.value, rel=1e-9)
        assert (other.silent, other.saturated) == (layer.silent, layer.saturated)


def test_the_weak_gradient_of_a_spiking_network_is_that_of_its_averaged_loss() -> None:
    """Where spikes have no derivative, the smoothed loss still has one."""
    x, y = batch(32)
    found = probe(
        attach(spiking("torch"), make("weak", {"copies": 65})),
        x,
        y,
        reference=FiniteDifference(200),
    )
    assert found.hidden is not None
    assert found.hidden.cosine.value > 0.95


def test_all_draws_see_the_same_examples() -> None:
    """Random encodings and dropout masks are not what the draws differ in."""
    x, y = batch()
    for network in (build("dropout"), spiking("torch", encoding={"kind": "poisson"})):
        found = probe(attach(network, make("backprop")), x, y)
        assert found.overall.variance.value < 1e-12 < found.overall.gradient


def test_a_probe_says_the_same_again() -> None:
    x, y = batch()
    engine = attach(build("mlp"), make("weak"))
    assert probe(engine, x, y).as_dict() == probe(engine, x, y).as_dict()


def test_sites_that_take_turns_are_seen_together() -> None:
    x, y = batch(32)
    engine = linear_engine(WeakGradient(33, method="baseline", sites="round_robin"))
    found = probe(engine, x, y, draws=100, neighbours=False)
    for name in ("0", "1"):  # each in every other draw: half of the gradient
        slope = found.layers[name].quality.slope
        assert abs(slope.value - 0.5) < 4 * slope.error < 0.3


def test_the_step_of_the_optimiser_is_measured() -> None:
    x, y = batch()
    engine = attach(build("mlp"), make("backprop"))
    optimiser = torch.optim.SGD(engine.parameters(), 0.3)
    found = probe(engine, x, y, optimiser=optimiser, draws=2)
    truth = autograd(build("mlp"), x, y)
    for name in ("0", "2", "4"):
        weight = engine.network.get_parameter(f"{name}.weight").detach()
        expected = 0.3 * truth[f"{name}.weight"].norm() / weight.norm()
        assert found.layers[name].update == pytest.approx(float(expected), rel=1e-9)
    assert probe(engine, x, y, draws=2).layers["0"].update is None


def test_tied_weights_and_others_are_counted_once() -> None:
    x, y = batch()
    found = probe(attach(build("tied"), make("backprop")), x, y, draws=2)
    trained = sum(parameter.numel() for parameter in build("tied").parameters())
    assert found.overall.parameters == trained
    layers = (nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    norm = probe(attach(drawn(nn.Sequential(*layers)), make("backprop")), x, y, draws=2)
    assert norm.layers["elsewhere"].kind == "other"


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"draws": 1}, "at least two"),
        ({"reference": "finite"}, "did you mean 'finite_difference'"),
        ({"reference": FiniteDifference}, "reference"),
    ],
)
def test_wrong_choices(choices: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        probe(attach(build("mlp"), make("weak")), *batch(), **choices)


def test_a_reference_that_cannot_be_had() -> None:
    engine = attach(opaque(), make("weak"))
    with pytest.raises(CapabilityError, match="cannot do vjp"):
        probe(engine, *batch(), reference="backpropagation")
    with pytest.raises(RecipeError, match="parameters"):
        FiniteDifference(parameters=0)
    engine.detach()
    with pytest.raises(CapabilityError, match="detached"):
        probe(engine, *batch())


def test_units_are_counted() -> None:
    x = torch.linspace(-3, 3, 40)[:, None]
    columns = [0 * x, x.relu(), 5 * x.tanh(), 5 * (99 * x + 1).tanh(), x.sigmoid()]
    found = population(torch.cat(columns, 1), nn.Linear(1, 5), spiking=False)
    assert found == {"units": 5, "silent": 0.2, "saturated": 0.2}
    spikes = torch.zeros(8, 20, 4)
    spikes[:, :, 0], spikes[:, 3, 1], spikes[2, 5, 2] = 1, 1, 1
    found = population(spikes, nn.Linear(1, 4), spiking=True)
    assert found == {"units": 4, "silent": 0.25, "saturated": 0.25}
    images = torch.rand(8, 3, 4, 4)
    images[:, 1] = 0
    for maps in (images, images.flatten(1)):
        found = population(maps, nn.Conv2d(1, 3, 1), spiking=False)
        assert found["units"] == 3 and found["silent"] == pytest.approx(1 / 3)


# Shown --------------------------------------------------------------------------------------------


def test_the_table_fits_and_the_record_is_json() -> None:
    x, y = batch()
    for network in (build("mlp"), spiking("torch")):
        engine = attach(network, make("weight_perturbation"))
        optimiser = torch.optim.Adam(engine.parameters(), 1e-2)
        found = probe(engine, x, y, optimiser=optimiser)
        text = str(found)
        assert max(map(len, text.splitlines())) <= 100
        for words in ("cosine", "variance", "silent", "hidden layers", "WeightPerturbation"):
            assert words in text
        for name in found.layers:
            assert name in text
        record = json.loads(json.dumps(found.as_dict(), allow_nan=False))
        assert record["hidden"]["cosine"]["value"] == found.hidden.cosine.value  # type: ignore[union-attr]
        assert record["advice"] == found.advice()


# Runs ---------------------------------------------------------------------------------------------


def executed(path: Path, estimator: str = "weak", model: str = "spiking", *more: str) -> Path:
    experiment.execute(
        experiment.TrainingRequest(
            model=model,
            dataset="random_manifolds",
            estimator=estimator,
            epochs=1,
            out=path,
            assignments=(
                "dataset.settings.train_rows=20",
                "dataset.settings.test_rows=5",
                "training.batch_size=20",
                *(["encoding.duration_ms=6.0"] if model == "spiking" else []),
                "network.hidden=[8, 6]",
                *more,
            ),
            device="cpu",
        )
    )
    return path


def contents(path: Path) -> dict[str, Tensor]:
    with biograd.load(path) as run:
        found = dict(run.checkpoint()[0])
        for stream in ("train_step", "epoch"):
            rows = run.scalars(stream).items()
            found |= {f"{stream}.{k}": torch.as_tensor(v) for k, v in rows if k != "wall_time"}
    return found


@pytest.mark.parametrize(("model", "estimator"), [("spiking", "weak"), ("ann", "backprop")])
def test_a_recorded_quality_changes_nothing_else(
    tmp_path: Path, model: str, estimator: str
) -> None:
    plain = executed(tmp_path / "plain.h5", estimator, model)
    probed = executed(tmp_path / "probed.h5", estimator, model, "training.probe=2")
    assert differences(contents(plain), contents(probed)) == []
    with biograd.load(probed) as run:
        count = len(run.snapshots["step"])
        assert count > 2
        for name in ("blocks.0.synapse", "blocks.1.synapse", "readout"):
            measures = run.learning[name]
            assert {"cosine", "angle_deg", "variance", "squared_bias"} <= set(measures)
            assert len(measures["cosine"]) == count and (abs(measures["cosine"]) <= 1).all()
            assert (measures["gradient"] > 0).any()
            error = measures["slope_error"]  # of two draws, all kept
            assert len(error) == count and (error[measures["gradient"] > 0] >= 0).all()
    with biograd.load(plain) as run:
        assert "cosine" not in run.learning.get("readout", {})


def test_a_run_is_probed_from_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = executed(tmp_path / "run.h5")
    assert main(["probe", str(path), "--draws", "3", "--examples", "10", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["run"] == str(path) and (record["draws"], record["examples"]) == (3, 10)
    with biograd.load(path) as run:
        assert record["step"] == run.checkpoints[-1] > 0
        found = biograd.diagnose(run, draws=3, examples=10).as_dict()
        first = biograd.diagnose(run, step=0, draws=3, examples=10)
    assert found == {key: value for key, value in record.items() if key in found}
    assert first.step == 0 and first.loss > record["loss"]
    # the schedule of the learning rate has ended near zero; the step is at the full rate
    assert all(1e-4 < layer["update"] < 0.5 for layer in record["layers"].values())
    assert main(["probe", str(path), "--draws", "2", "--reference", "finite_difference"]) == 0
    printed = capsys.readouterr().out
    assert "central differences" in printed and "blocks.1.synapse" in printed


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--step", "7000"], 2, "no checkpoint of step 7000"),
        (["--draws", "1"], 2, "--draws"),
        (["--reference", "autograd"], 2, "known: auto"),
    ],
)
def test_wrong_probes_of_a_run(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    path = executed(tmp_path / "run.h5", "backprop", "ann")
    assert main(["probe", str(path), *arguments]) == code
    printed = capsys.readouterr()
    assert printed.out == "" and words in printed.err and printed.err.count("\n") == 1
