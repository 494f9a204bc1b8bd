"""The engine: attach and detach, state, common randomness, capabilities, surface."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from networks_for_tests import (
    PLAIN,
    RANDOM,
    batch,
    build,
    cannot,
    check_equal,
    drawn,
    gradients,
    opaque,
    spiking,
)
from torch import Tensor, nn

from biograd.decorrelation import Decorrelation
from biograd.engine import Engine, attach
from biograd.errors import BiogradError, CapabilityError, RecipeError
from biograd.estimators import ESTIMATORS, WeakGradient, make

RULES = (None, "kappa", "scaled")
NETWORKS = [*PLAIN, *RANDOM, "torch", "snntorch"]


def network(name: str) -> nn.Module:
    return spiking(name) if name in ("torch", "snntorch", "brian2") else build(name)


def decorrelation(rule: str | None) -> Decorrelation | None:
    return None if rule is None else Decorrelation(rule, rate=1e-2, centre=True)  # type: ignore[arg-type]


def step(engine: Engine, inputs: Tensor, targets: Tensor, rate: float = 0.1) -> Tensor:
    """Take one whole step of gradient descent and return the losses."""
    engine.network.zero_grad()
    result = engine(inputs, targets, torch.arange(len(inputs)))
    result.backward()
    with torch.no_grad():
        for parameter in engine.network.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=rate)
    engine.update()
    return result.losses


def found_as(module: nn.Module) -> dict[str, Any]:
    """Return everything about a module that an attached engine must leave as it is."""
    hooks = [key for key in module.__dict__ if "hooks" in key and key.startswith(("_f", "_b"))]
    return {
        "parts": [
            (
                name,
                type(part),
                sorted(part.__dict__),
                part.training,
                [list(getattr(part, hook)) for hook in hooks],
            )
            for name, part in module.named_modules()
        ],
        "parameters": [(name, id(value)) for name, value in module.named_parameters()],
        "keys": list(module.state_dict()),
        "forward": [part.__dict__.get("forward") for part in module.modules()],
    }


WORKS = [(name, rule) for name in NETWORKS for rule in ESTIMATORS if not cannot(name, rule)]
REFUSED = [(name, rule) for name in NETWORKS for rule in ESTIMATORS if cannot(name, rule)]


DECORRELATED = ("backprop", "weak", "feedback_alignment")
WITH_RULES = [(*cell, None) for cell in WORKS]
WITH_RULES += [(*cell, "kappa") for cell in WORKS if cell[1] in DECORRELATED]


@pytest.mark.parametrize(("name", "estimator", "rule"), WITH_RULES)
def test_detach_leaves_no_trace(name: str, estimator: str, rule: str | None) -> None:
    assert WORKS
    made, (inputs, targets) = network(name), batch()
    made.eval()(inputs)  # snnTorch's neurons gain an attribute in their first call
    before = found_as(made.train())
    engine = attach(made, make(estimator), decorrelation(rule))
    assert type(made) is type(engine.network) and list(made.state_dict()) == before["keys"]
    step(engine, inputs, targets)
    assert engine.detach() is made
    assert found_as(made) == before


@pytest.mark.parametrize(("name", "estimator"), REFUSED)
def test_what_cannot_be_is_refused_in_one_line(name: str, estimator: str) -> None:
    with pytest.raises(CapabilityError) as refusal:
        step(attach(network(name), make(estimator)), *batch())
    assert cannot(name, estimator) in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_failed_attach_leaves_no_trace() -> None:
    layer = nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")
    made = nn.Sequential(layer, nn.Flatten(), nn.Linear(32, 3))
    before = found_as(made)
    with pytest.raises(CapabilityError, match="zero padding"):
        attach(made, make("weak"), Decorrelation())
    assert found_as(made) == before


@pytest.mark.parametrize(
    ("name", "estimator", "rule"), [c for c in WITH_RULES if c[0] in ("dropout", "torch")]
)
def test_the_next_step_after_a_checkpoint_is_the_same(
    name: str, estimator: str, rule: str | None
) -> None:
    inputs, targets = batch()
    first = attach(network(name), make(estimator), decorrelation(rule), seed=3)
    for _ in range(2):
        step(first, inputs, targets)
    state, weights = first.state(), copy.deepcopy(first.network.state_dict())
    expected = [step(first, inputs, targets) for _ in range(2)]
    again = attach(network(name), make(estimator), decorrelation(rule), seed=99)
    again.network.load_state_dict(weights)
    again.load_state(state)
    assert state.keys() == again.state().keys() and first.step - 2 == again.step == 2
    for losses in expected:
        assert torch.equal(step(again, inputs, targets), losses)
    for one, other in zip(first.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_step_without_its_state_differs() -> None:
    inputs, targets = batch()
    first = attach(network("dropout"), make("weak"), seed=3)
    step(first, inputs, targets)
    again = attach(copy.deepcopy(first).detach(), make("weak"), seed=3)
    assert not torch.equal(step(first, inputs, targets), step(again, inputs, targets))


@pytest.mark.parametrize(("name", "estimator"), WORKS)
def test_a_step_leaves_the_global_generator_alone(name: str, estimator: str) -> None:
    made, (inputs, targets) = network(name), batch()
    engine = attach(made, make(estimator))
    before = torch.get_rng_state()
    step(engine, inputs, targets)
    step(engine, inputs, targets)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", NETWORKS)
def test_an_attached_network_can_be_copied(name: str, rule: str | None) -> None:
    made, (inputs, targets) = network(name), batch()
    engine = attach(made, make("weak"), decorrelation(rule))
    step(engine, inputs, targets)
    twin = copy.deepcopy(made)
    made.eval(), twin.eval()
    assert torch.equal(twin(inputs), made(inputs))
    for one, other in zip(made.parameters(), twin.parameters(), strict=True):
        assert one is not other
    with torch.no_grad():
        next(iter(twin.parameters())).add_(1)
    assert not torch.equal(twin(inputs), made(inputs))
    made.train()
    step(engine, inputs, targets)


# What is refused, and how -------------------------------------------------------------------------


class RandomOutside(nn.Sequential):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs + torch.randn_like(inputs))


def scalar(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets)


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "site": (lambda: build("mlp"), {"sites": ["0", "4x"]}, "no layer '4x'"),
    "group": (lambda: build("mlp"), {"sites": {"a": ["0", "9"]}}, "no layer '9'"),
    "weak site": (
        lambda: build("mlp"),
        {"estimator": WeakGradient(5, sites=("00",))},
        "no site '00'",
    ),
    "scalar loss": (lambda: build("mlp"), {"loss": scalar}, "one value per example"),
    "unknown loss": (lambda: build("mlp"), {"loss": "cross-entropy"}, "'cross_entropy'"),
    "one layer": (lambda: nn.Sequential(nn.Linear(6, 3)).double(), {}, "no hidden site"),
    "one layer, eval": (
        lambda: nn.Sequential(nn.Linear(6, 3)).double().eval(),
        {},
        "no hidden site",
    ),
    "no layer": (lambda: nn.Sequential(nn.Flatten()), {}, "no linear or convolutional layer"),
    "frozen": (lambda: build("mlp").requires_grad_(False), {}, "no trainable parameter"),
    "outputs": (
        lambda: nn.Sequential(nn.Linear(6, 6), nn.GRU(6, 3)).double(),
        {"estimator": make("backprop")},
        "say which part the outputs are",
    ),
    "random": (
        lambda: drawn(
            RandomOutside(nn.Linear(6, 5), nn.BatchNorm1d(5, affine=False), nn.Linear(5, 3))
        ),
        {},
        "outside of dropout",
    ),
    "orthogonal": (
        lambda: build("mlp"),
        {"estimator": WeakGradient(17, method="orthogonal")},
        "at most 10 copies",
    ),
    "quadratic": (
        lambda: build("mlp"),
        {"estimator": WeakGradient(17, method="quadratic")},
        "at least 20 copies",
    ),
    "brian2 backprop": (opaque, {"estimator": make("backprop")}, "needs vjp"),
    "brian2 named site": (
        opaque,
        {"estimator": WeakGradient(5, sites=("blocks.0.synapse",))},
        "needs vjp",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_line(case: str) -> None:
    make_network, settings, words = REFUSED[case]
    settings = dict(settings)
    inputs, targets = batch()
    made = make_network()
    buffers = {name: value.clone() for name, value in made.named_buffers()}
    with pytest.raises(BiogradError) as caught:
        attach(made, settings.pop("estimator", WeakGradient(5)), **settings)(inputs, targets)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert isinstance(caught.value, RecipeError) and caught.value.exit_code == 2
    assert all(torch.equal(value, buffers[name]) for name, value in made.named_buffers())


def test_everything_missing_is_listed_at_once() -> None:
    class Demanding(WeakGradient):
        needs = frozenset(("loss", "vjp", "jvp_site", "jvp_parameter"))  # type: ignore[arg-type]

    with pytest.raises(CapabilityError, match=r"jvp_parameter, jvp_site, vjp, which .*brian2"):
        attach(opaque(), Demanding())


@pytest.mark.parametrize("copies", [2, 4, 1])
def test_weight_perturbation_needs_pairs(copies: int) -> None:
    with pytest.raises(RecipeError, match=r"copies = \d: (pairs|must be >= 3)"):
        make("weight_perturbation", {"copies": copies})
    assert make("weight_perturbation", {"copies": 3})


def test_chance_beside_dropout_modules_is_refused() -> None:
    class Functional(nn.Sequential):
        def forward(self, inputs: Tensor) -> Tensor:
            return nn.functional.dropout(super().forward(inputs), 0.5, self.training)

    for name, estimator in ESTIMATORS.items():
        engine = attach(Functional(nn.Linear(6, 5), nn.Linear(5, 3)).double(), make(name))
        if estimator.needs & {"perturb_site", "perturb_parameter"}:
            with pytest.raises(CapabilityError, match="two copies without noise"):
                engine(*batch(), torch.arange(8))
        else:
            engine(*batch(), torch.arange(8))


WRONG: list[tuple[type, dict[str, Any]]] = [
    (WeakGradient, {"copies": 1}),
    (WeakGradient, {"sigma": 0.0}),
    (WeakGradient, {"sigma": float("nan")}),
    (WeakGradient, {"method": "nope"}),
    (WeakGradient, {"time_bin": 0}),
    (WeakGradient, {"ridge": -1.0}),
    (ESTIMATORS["node_perturbation"], {"activity": "guessed"}),
    (ESTIMATORS["weight_perturbation"], {"sigma": -1.0}),
]


@pytest.mark.parametrize(("kind", "wrong"), WRONG, ids=str)
def test_wrong_settings_are_refused_by_the_constructor(kind: type, wrong: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=f"^{kind.__name__}: {next(iter(wrong))}"):
        kind(**wrong)


@pytest.mark.parametrize("wrong", ["weak", WeakGradient])
def test_what_is_no_estimator_is_refused(wrong: Any) -> None:
    with pytest.raises(CapabilityError, match="needs an estimator object"):
        attach(build("mlp"), wrong)


def test_a_detached_engine_says_so() -> None:
    engine = attach(build("mlp"), make("weak"))
    engine.detach()
    with pytest.raises(CapabilityError, match="detached"):
        engine(*batch())


def test_sites_cannot_be_given_to_a_substrate_that_names_its_own() -> None:
    recipe = {"kind": "event_driven", "synaptic_time_constant_ms": 4.0}
    with pytest.raises(CapabilityError, match="names its own sites"):
        attach(spiking("torch", neuron=recipe), make("weak"), sites=["nonsense"])


# The surface --------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_surrogate_has_the_value_of_the_clean_loss(estimator: str) -> None:
    inputs, targets = batch()
    result = attach(build("mlp"), make(estimator))(inputs, targets, torch.arange(8))
    assert torch.equal(result.surrogate.detach(), result.losses[0].mean())
    assert torch.equal(result.loss, result.losses[0].mean())
    assert result.outputs.shape == (8, 3) and not result.outputs.requires_grad


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_scaled_and_accumulated_gradients(estimator: str) -> None:
    inputs, targets = batch()
    plain = gradients(attach(build("mlp"), make(estimator), seed=4), inputs, targets)
    engine = attach(build("mlp"), make(estimator), seed=4)
    (1024 * engine(inputs, targets, torch.arange(8)).surrogate).backward()
    scaled = {
        name: value.grad / 1024
        for name, value in engine.network.named_parameters()
        if value.grad is not None
    }
    assert scaled
    check_equal(scaled, {name: plain[name] for name in scaled}, 1e-12)


def test_informative_is_the_share_of_copies_that_say_something() -> None:
    inputs, targets = batch()
    with torch.no_grad():
        silent = spiking()
        for parameter in silent.parameters():
            parameter.zero_()
    result = attach(silent, make("weak", {"sigma": 1e-6}))(inputs, targets)
    assert result.informative == 0.0
    assert attach(build("mlp"), make("weak"))(inputs, targets).informative == 1.0
    assert attach(build("mlp"), make("backprop"))(inputs, targets).informative == 1.0


def test_the_sites_scale_is_a_running_mean() -> None:
    inputs, targets = batch()
    engine = attach(build("mlp"), make("backprop"))
    engine(inputs, targets)
    first = build("mlp")[0]
    rms = first(inputs).square().mean().sqrt().item()
    assert engine.scales["0"] == pytest.approx(rms, rel=1e-12)
    engine.update()
    engine(2 * inputs, targets)
    engine.update()
    doubled = first(2 * inputs).square().mean().sqrt().item()
    assert engine.scales["0"] == pytest.approx(0.9 * rms + 0.1 * doubled, rel=1e-12)
