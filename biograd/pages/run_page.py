"""One run as a page: results, activity, representation, gradient, weights, answers, cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from biograd.analyses.answers import wilson
from biograd.display.columns import costs, duration, large
from biograd.errors import BiogradError, word
from biograd.metrics import figure, headline, is_share, words, written
from biograd.pages.markup import Figures, document, html, listing, missing, section, table, tiles
from biograd.plots.of_learning import classes_of, evaluated
from biograd.plots.panel import Panel
from biograd.plots.run_figures import FIGURES
from biograd.runs.reader import Run

SECTIONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "Learning": ("", ("curves", "loss", "decorrelation")),
    "Activity": (
        "The stimuli of all snapshots are the same. Trials begin at rest and are no one recording.",
        ("raster", "rates", "silence", "psth"),
    ),
    "Representation": (
        "Dissimilarity of two stimuli: 1 - Pearson's correlation of what they leave in a layer, on "
        "one scale.",
        ("rdm", "classes", "probes", "receptive_fields"),
    ),
    "Gradient": (
        "The rule's estimate against back-propagation on the same examples. For spikes the "
        "reference is the surrogate gradient, which is no truth: a spike has no derivative.",
        ("gradients", "alignment"),
    ),
    "Weights": ("", ("weight_norms", "weights")),
    "Answers": ("", ("confusion",)),
}
KINDS = {
    "raster": "spiking",
    "psth": "spiking",
    "rates": "any",
    "silence": "any",
}
VERSIONS = ("versions", "platform", "device", "cpu", "threads", "git")
"""What of the environment a page says: no paths, and no name of a machine."""
PRIVATE = ("data_dir", "code", "path", "paths")
"""Settings that may hold a path of the user's."""


def run_page(run: Run) -> str:
    """Return the page of a run, also of one that goes on or was killed."""
    about, drawing = run.attributes, Figures()
    title = " ".join(str(about.get(key, "")) for key in ("model", "dataset")).strip() or "Run"
    rule = str(about.get("rule", "unknown"))
    beside = run.summary.get("decorrelation")
    rule += f" + {beside}" if isinstance(beside, str) and beside != "off" else ""
    parts = [_figures(run, drawing, name, lead, what) for name, (lead, what) in SECTIONS.items()]
    parts += [
        section("Cost", _cost(run)),
        section("Configuration", listing(_public(run.config), "Configuration")),
        section("Environment", listing(_environment(run), "Environment")),
        section("Repeat", _repeat(run)),
    ]
    return document(f"{title}, rule {rule}", _lead(run), _tiles(run), parts)


def _lead(run: Run) -> str:
    about = run.attributes
    layers = ", ".join(
        f"{len(layer.units)} {'neurons' if layer.kind == 'spiking' else 'units'}"
        for layer in run.layers.values()
    )
    time = next(
        (
            f"; trials of {i.n_steps} steps of {i.dt_ms:g} ms"
            for i in run.layers.values()
            if i.n_steps and i.dt_ms
        ),
        "",
    )
    begun = str(about.get("created_at", ""))[:10]
    return (
        f"One run, seed {about.get('seed', '?')}, {run.status}, {begun}. Recorded layers: "
        f"{layers or 'none'}{time}. One seed says nothing of the spread between seeds."
    )


def _tiles(run: Run) -> str:
    return tiles(_numbers(run))


def _numbers(run: Run) -> Iterator[tuple[str, str, str]]:
    said, name = run.summary, headline(run.attributes)
    if f"test_{name}" in said:
        value = figure(said)
        classes, count = classes_of(run), evaluated(run)
        beside = f"chance {100 / classes:.3g} %" if classes and is_share(name) else "one run"
        if count and is_share(name):
            low, high = wilson(round(count * value), count)
            beside = f"n = {count}, 95 % {100 * low:.1f} to {100 * high:.1f}; {beside}"
        yield f"Test {words(name)}", written(name, value), beside
    control = said.get("frozen_hidden_control")
    if isinstance(control, float):
        yield "Frozen hidden layers", written(name, control), "control: only the readout learns"
    yield from _rates(run)
    operations = [said.get(k) for k in ("multiply_accumulates", "synaptic_operations")]
    known = [value for value in operations if isinstance(value, float | int)]
    if known:
        yield (
            "Operations",
            large(float(sum(known))),
            "multiply-accumulates and synaptic, an example",
        )
    if isinstance(said.get("training_seconds"), float | int):
        passes = said.get("forward_passes")
        beside = f"{large(float(passes))} forward passes" if isinstance(passes, float | int) else ""
        yield "Training", duration(float(said["training_seconds"])), beside


def _rates(run: Run) -> Iterator[tuple[str, str, str]]:
    from biograd.analyses import of_run

    try:
        rates, silent = of_run.rates(run), of_run.silence(run)
    except BiogradError:
        return
    hertz = [float(values[-1].mean()) for key, values in rates.items() if key.endswith("rate_hz")]
    if hertz:
        yield "Firing, end", f"{sum(hertz) / len(hertz):.3g} Hz", "mean of the layers, model time"
    shares = [float(values[-1]) for values in silent.values()]
    stimuli = len(run.probe.index) if run.probe is not None else 0
    yield (
        "Silent units, end",
        f"{100 * sum(shares) / len(shares):.1f} %",
        f"for all {stimuli} stimuli",
    )


def _figures(
    run: Run, drawing: Figures, name: str, lead: str, what: Iterable[str]
) -> tuple[str, str]:
    """Return a section; what the run does not hold is one line that says so."""
    panels: list[Panel] = []
    lacking: list[str] = []
    spiking = any(layer.kind == "spiking" for layer in run.layers.values())
    for one in what:
        if KINDS.get(one) == "spiking" and not spiking:
            continue
        try:
            found = FIGURES[one](run)
        except (BiogradError, LookupError, ValueError) as error:  # of a file of anybody's
            lacking.append(f"{one.replace('_', ' ')}: {str(error).removeprefix(f'{run.path}: ')}")
            continue
        panels += found if isinstance(found, list) else [found]
    words = f'<p class="note">{lead}</p>' if lead and panels else ""
    grid = drawing.grid(panels) if panels else ""
    return section(name, words, grid, missing("; ".join(lacking)) if lacking else "")


def _cost(run: Run) -> str:
    found = [row for row in costs(run.summary) if row[1]] if run.summary else []
    if not found:
        return missing("the run has not ended: its costs are summed up at its end")
    note = (
        '<p class="note">Seconds on the clock: other work may have run beside. Operations stand '
        "for energy only roughly: memory traffic and the updates of membranes are not counted.</p>"
    )
    return table(["what", "how much"], found, "Cost") + note


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without the paths of its user."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key not in PRIVATE:
            found[key] = _public(value) if isinstance(value, Mapping) else value
    return found


def _environment(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.environment.items() if key in VERSIONS}


def _repeat(run: Run) -> str:
    name = word(run.path.name)
    about = run.attributes
    lines = [f"biograd reproduce {name}"]
    if isinstance(about.get("model"), str) and not run.config.get("module"):
        lines += [
            "",
            f"biograd train --model {word(about['model'])} "
            f"--dataset {word(about.get('dataset', ''))} "
            f"--estimator {word(about.get('rule', ''))} --seed {word(about.get('seed', 0))}",
        ]
    digests = "".join(
        f"<li>{label}: <code>{value}</code></li>"
        for key, label in (("config_sha256", "configuration"), ("dataset_sha256", "data"))
        if (value := _digest(about.get(key)))
    )
    text = "\n".join(lines)
    return (
        f"<pre>{html(text)}</pre><p>The first repeats the run from its file, bit for bit on the "
        f"same machine, and compares. SHA-256:</p><ul>{digests}</ul>"
    )


def _digest(value: object) -> str:
    text = str(value or "")
    return text if len(text) == 64 and all(sign in "0123456789abcdef" for sign in text) else ""
