"""Mutated equations: nothing of them runs, and what is accepted Brian2 accepts, too.

``pytest tests/fuzz/test_fuzz_equations.py -m slow`` tries 2,000 of them; every run of the tests a
share of those.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from biograd.brian.import_brian2 import import_brian2
from biograd.brian.language import Language
from biograd.brian.neuron_model import NeuronModel
from biograd.brian.quantities import quantity
from biograd.errors import RecipeError
from biograd.recipes import PopulationRecipe, construct, toml

KEYS = ("equations", "threshold", "reset", "refractory", "update")
CANARY = "__import__('os').environ.__setitem__('BIOGRAD_CANARY', 'sang')"
OCTAL = "".join(f"\\{ord(letter):03o}" for letter in CANARY)
EXECUTED = (
    f"0*exp('{OCTAL}')",
    f'0*exp("{OCTAL}")',
    f"0*exp(b'{OCTAL}')",
    f"0*exp(f'{OCTAL}')",
    f"0*exp(u'{OCTAL}')",
    f"0*exp(r'''{CANARY}''')",
    f"0*clip('{OCTAL}', 0, 1)",
    f"0*sqrt('{OCTAL}' '')",
    f"0*abs({CANARY} or 0)",
    f"0*({CANARY} or 0)",
    f"[{CANARY}][0]",
    f"(lambda: {CANARY})()",
    f"[x for x in [{CANARY}]][0]",
    f"(y := {CANARY})",
    f"{{{CANARY}: 1}}[0]",
    f"(1 if {CANARY} else 0)",
    "exp.__class__",
    "exp(1).__init__.__globals__",
    "exp(*v)",
    "exp(x=1)",
    "eval(v)",
    "__import__(v)",
    "v[0]",
    "v.real",
    "...",
    "None",
    "1j",
    "v if v else v",
    "v, v",
    "{v}",
    "f'{v}'",
    "v @ v",
    "v & 1",
    "v << 2",
    "v is v",
    "v in v",
    "1 < v < 2",
    "\uff56",
    "exp\uff56(1)",
    "v\u2028",
    "v\x0c",
    "v\x00",
    "10**10**10",
    "9**9**9**9",
    "1e999",
    "1" * 5000,
    "(v + tau)**99999",
    "(" * 250 + "v" + ")" * 250,
    "-" * 500 + "v",
    f"v # '; v = exp('{OCTAL}')",
    f"v\nreset : exp('{OCTAL}')",
)
"""Fragments that would run, hang, or mean something that no formula is."""


def populations() -> list[dict[str, Any]]:
    """Return the populations of the shipped recipes, as keys of ``PopulationRecipe``."""
    found = []
    for name in toml.names("models"):
        table = tomllib.loads((toml.shipped("models") / f"{name}.toml").read_text())
        found += [table.get("population", {}), *table.get("populations", {}).values()]
    # a circuit has several ports, a population of its own only that of its input
    return [{k: v for k, v in one.items() if k != "scale"} for one in found if "equations" in one]


BASES = [
    *populations(),
    {
        "equations": "dv/dt = (I*s - v + xi*sqrt(tau)) / tau : 1 (unless refractory) # leak\n"
        "da/dt = -a / (20*ms) : 1\ns = 0.1*int(a > 0) : 1\nI : 1",
        "threshold": "v > 1 + a and not_refractory",
        "reset": "v = 0\na += 0.1",
        "refractory": "v > 0.5",
        "update": "a *= 0.99; a = clip(a, 0, 10)",
        "namespace": {"tau": "10*ms"},
        "method": "euler",
    },
]


def _letter(text: str, draw: random.Random) -> str:
    place = draw.randrange(len(text) + 1)
    letter = draw.choice("()[]{}'\"\\;:#=+-*/%.,_ \n\t019eEjxvItd<>!&|^~@$?`\u00b5\u2028")
    return text[:place] + letter + text[place + draw.choice((0, 0, 1)) :]


def _cut(text: str, draw: random.Random) -> str:
    ends = sorted(draw.randrange(len(text) + 1) for _ in range(2))
    return text[: ends[0]] + text[ends[1] :] or "v"


def _tokens(text: str, draw: random.Random) -> str:
    tokens = re.findall(r"\w+|\s+|[^\w\s]", text) or ["v"]
    one, two = (draw.randrange(len(tokens)) for _ in range(2))
    if draw.random() < 0.5:
        tokens[one], tokens[two] = tokens[two], tokens[one]
    else:
        tokens[one] = tokens[two]
    return "".join(tokens)


def _executed(text: str, draw: random.Random) -> str:
    words = list(re.finditer(r"\b\w+\b", text))
    fragment = draw.choice(EXECUTED)
    if not words:
        return text + fragment
    word = draw.choice(words)
    return text[: word.start()] + fragment + text[word.end() :]


def _doubled(text: str, draw: random.Random) -> str:
    lines = [f"big{k} = big{k - 1} * big{k - 1} + big{k - 1} : 1" for k in range(1, 40)]
    return "\n".join([text, "big0 = v + 1 : 1", *lines, "dz/dt = big39 / second : 1"])


MUTATIONS: tuple[Callable[[str, random.Random], str], ...] = (
    _letter, _letter, _cut, _tokens, _tokens, _executed, _executed, _doubled,
)  # fmt: skip


def mutants(count: int) -> Iterator[dict[str, Any]]:
    """Yield populations of which one text is changed once to three times; always the same."""
    for number in range(count):
        draw = random.Random(number)
        table = dict(draw.choice(BASES))
        key = draw.choice([key for key in KEYS if table.get(key)])
        for _ in range(draw.choice((1, 1, 2, 3))):
            table[key] = draw.choice(MUTATIONS)(table[key], draw)
        yield table


def tried(table: dict[str, Any]) -> str:
    """Return what came of a mutant: accepted, or the kind of its refusal."""
    try:
        NeuronModel(construct(PopulationRecipe, table, "fuzz"), 0.1)
    except RecipeError as error:
        assert "\n" not in str(error)
        return "refused"
    plain(table)
    return "accepted"


def plain(table: dict[str, Any]) -> None:
    """Let Brian2 alone take a population; whatever it raises is an error of the test."""
    b2 = import_brian2()
    known = {k: quantity(v, k) for k, v in table.get("namespace", {}).items()}
    known = {k: v for k, v in known.items() if k not in table.get("trainable", {})}
    equations = b2.Equations(table["equations"])
    for name in table.get("trainable", {}):
        unit = b2.get_unit(b2.get_dimensions(quantity(table["namespace"][name], name)))
        equations += b2.Equations(f"{name} : {unit!r} (constant)")
    refractory = table.get("refractory", "")
    try:
        refractory = quantity(refractory, "refractory")
    except RecipeError:
        refractory = refractory or False
    group = b2.NeuronGroup(
        1,
        equations,
        threshold=table.get("threshold") or None,
        reset=table.get("reset") if table.get("threshold") else None,
        refractory=refractory if table.get("threshold") else False,
        **({"method": table["method"]} if table.get("method") else {}),
        namespace=known,
    )
    if table.get("update"):
        group.run_regularly(table["update"])
    b2.Network(group).run(0 * b2.ms, namespace={})


@pytest.fixture(autouse=True)
def caged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stand in an empty folder, and look afterwards whether something ran."""
    monkeypatch.setitem(import_brian2().prefs, "codegen.target", "numpy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BIOGRAD_CANARY", raising=False)
    yield
    assert "BIOGRAD_CANARY" not in os.environ
    assert not list(tmp_path.iterdir())


def test_the_canary_sings_where_nobody_listens_first() -> None:
    from brian2.parsing.sympytools import str_to_sympy

    with contextlib.suppress(Exception):
        str_to_sympy(f"0*exp('{OCTAL}')")
    assert os.environ.pop("BIOGRAD_CANARY") == "sang"


def _fuzz(count: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for table in mutants(count):
        found[tried(table)] += 1
        assert "BIOGRAD_CANARY" not in os.environ, table
    return found


@pytest.mark.parametrize("table", BASES, ids=range(len(BASES)))
def test_what_is_not_mutated_is_accepted(table: dict[str, Any]) -> None:
    assert tried(table) == "accepted"


@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_a_share_of_the_mutants() -> None:
    found = _fuzz(60)
    assert found["accepted"] > 2 and found["refused"] > 30


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_all_mutants() -> None:
    found = _fuzz(2000)
    print(dict(found))
    assert found["accepted"] > 100 and found["refused"] > 1000


@pytest.mark.parametrize("fragment", EXECUTED[:-2])
def test_no_fragment_is_a_formula_anywhere(fragment: str) -> None:
    language, good = Language("test"), "dv/dt = {0} / ms : 1\nw = {0} : 1"
    fragment = fragment.replace(":=", ": =")  # a colon ends an equation
    with pytest.raises(RecipeError):
        language.equations(good.format(fragment))
    with pytest.raises(RecipeError):
        language.statements(f"v = 0; v = {fragment}", "reset")
    with pytest.raises(RecipeError):
        language.expression(f"v > {fragment}", "threshold")
    with pytest.raises(RecipeError):
        quantity(fragment, "namespace.tau")


GOOD = (
    "dv/dt = -v/(10*ms) : 1\n# μ, a comment: exp('x')\nI = int(t > 10*ms) * 5 : 1",
    "dv/dt = (-v +\n  1) / (10*ms) : 1 (unless refractory)  # over two lines",
    "ge : siemens (constant, shared)\nn : integer\nb : boolean\nu : amp*volt**-1",
    "x = -1.5e-3**2 + 7 // 2 % 3 - +4 : 1",
    "dv/dt = exprel(v) * clip(v, 0, 1) / (1*second) + timestep(t, dt)*0/second : 1",
    "b = (v > 1 and not (v < 2 or v == 3)) or v != 4 or True : boolean\nv : 1",
)


@pytest.mark.parametrize("text", GOOD)
def test_what_brian2_takes_is_left_alone(text: str) -> None:
    Language("test").equations(text)
    import_brian2().Equations(text)


def test_functions_that_a_user_passes_can_be_called() -> None:
    Language("test", ["mine"]).equations("dv/dt = mine(v) / ms : 1")
    with pytest.raises(RecipeError, match=r"'mine\(v\)' calls no known function"):
        Language("test").equations("dv/dt = mine(v) / ms : 1")


def test_brian2_divides_statements_before_comments() -> None:
    with pytest.raises(RecipeError, match=r"may not stand in a formula \(str\)"):
        Language("test").statements(f"v = 0 # see; v = exp('{OCTAL}')", "reset")
