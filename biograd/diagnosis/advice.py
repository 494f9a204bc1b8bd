"""Why a network does not learn: each rule looks for one cause in what a probe has measured.

A line of advice says what, where, the number that was measured, and what to change.  A network
that is in order gets none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from biograd.diagnosis.findings import Findings, Layer

Rule = Callable[[Findings], Iterator[str]]

MANY = 0.5
"""Share of a layer's units that must be silent or saturated to be worth a word."""
FEW_INFORMATIVE = 0.5
ERRORS = 2.5
"""Standard errors by which a number must differ from 0 to count."""
LOW_COSINE, LOW_MEAN_COSINE = 0.2, 0.6
BETTER = 1.3
"""Factor by which another size of the noise must raise the cosine."""
VANISHED = 1e-3
"""Gradient by weight of one hidden layer, relative to another."""
UNEVEN = 30.0
"""Ratio of the shares of their gradients that two hidden layers receive."""
LARGE_STEP, SMALL_STEP = 0.5, 1e-6
"""Change of the weights in one step, relative to the weights."""


def of(diagnosis: Findings) -> list[str]:
    """Return all advice, line by line."""
    return [line for rule in RULES for line in rule(diagnosis)]


def _hidden(diagnosis: Findings) -> Iterator[tuple[str, Layer]]:
    for name, layer in diagnosis.layers.items():
        if layer.kind == "hidden":
            yield name, layer


def silent(diagnosis: Findings) -> Iterator[str]:
    """Units that are inactive for every example pass no credit on."""
    for name, layer in _hidden(diagnosis):
        if (layer.silent or 0) > MANY:
            yield (
                f"{name}: {layer.silent:.0%} of {layer.units} units are silent for all "
                f"{diagnosis.examples} examples: let every layer begin to fire "
                "(training.start_rate = 0.05, or biograd.tune_init), raise network.gain, the input "
                "(encoding.gain) or the biases, or lower the threshold"
            )


def saturated(diagnosis: Findings) -> Iterator[str]:
    """Units at the end of their range do not answer to their weights."""
    for name, layer in _hidden(diagnosis):
        if (layer.saturated or 0) > MANY:
            yield (
                f"{name}: {layer.saturated:.0%} of {layer.units} units are saturated: lower "
                "network.gain, the input (encoding.gain) or the learning rate, or normalise"
            )


def no_gradient(diagnosis: Findings) -> Iterator[str]:
    """Nothing to learn from: the reference itself is zero."""
    for name, layer in _hidden(diagnosis):
        if layer.quality.gradient == 0:
            yield (
                f"{name}: its true gradient is 0 (loss {diagnosis.loss:.3g}): nothing behind it "
                "depends on its weights; look for silent or saturated units and detached tensors"
            )


def no_credit(diagnosis: Findings) -> Iterator[str]:
    """A hidden layer that receives nothing at all."""
    if not diagnosis.learns_hidden:
        return
    for name, layer in _hidden(diagnosis):
        if layer.quality.gradient > 0 and layer.quality.norm_ratio.value == 0:
            yield (
                f"{name}: {diagnosis.estimator} gives it no credit (norm 0 of "
                f"{layer.quality.gradient:.1e}): name its site, or train what delivers credit first"
            )


def uninformative(diagnosis: Findings) -> Iterator[str]:
    """Copies whose loss is that of the clean one say nothing."""
    if diagnosis.copies > 1 and diagnosis.informative < FEW_INFORMATIVE:
        yield (
            f"all layers: only {diagnosis.informative:.1%} of the noisy copies change the loss "
            f"({_noise(diagnosis)}): raise sigma, or use a readout that sees every spike "
            "(neuron.readout = 'membrane')"
        )


def noise_size(diagnosis: Findings) -> Iterator[str]:
    """Noise of another size gives a clearly better estimate."""
    if diagnosis.hidden is None or diagnosis.sigma is None:
        return
    here = diagnosis.hidden.cosine.value
    best = max(diagnosis.neighbours, key=lambda n: n.cosine.value, default=None)
    if best is None or not best.gain.value > ERRORS * best.gain.error:
        return
    if best.cosine.value > BETTER * max(here, 0) and best.gain.value > 0.02:
        word, why = ("raise", "lost in rounding or in plateaus of the loss")
        if best.sigma < diagnosis.sigma:
            word, why = ("lower", "too large for the curvature of the loss")
        yield (
            f"hidden layers: cosine {here:.2f} at sigma = {diagnosis.sigma:g}, "
            f"{best.cosine.value:.2f} at {best.sigma:g}: the noise is {why}; {word} sigma"
        )


def at_the_peak(diagnosis: Findings) -> Iterator[str]:
    """Least squares without a ridge diverges where there are as many copies as dimensions."""
    noisy, size = diagnosis.copies - 1, diagnosis.dimensions
    if diagnosis.method not in ("least_squares", "anchored") or diagnosis.hidden is None:
        return
    if 0.75 * size <= noisy <= 1.5 * size and diagnosis.hidden.variance.value > 1:
        variance = diagnosis.hidden.variance.value
        yield (
            f"hidden layers: variance {variance:.1f} |g|² with {noisy} noisy copies for {size} "
            "dimensions, where least squares is worst: method = 'ridge', or "
            f"copies >= {2 * size + 1}"
        )


def few_copies(diagnosis: Findings) -> Iterator[str]:
    """The estimate is right in the mean and drowns in its own variance."""
    quality, noisy = diagnosis.hidden, diagnosis.copies - 1
    if quality is None or not 0 < noisy < diagnosis.dimensions:
        return
    drowned = quality.cosine.value < LOW_COSINE and quality.variance.value > 4
    if drowned and quality.cosine.value > ERRORS * quality.cosine.error:
        yield (
            f"hidden layers: cosine {quality.cosine.value:.2f}, variance "
            f"{quality.variance.value:.0f} |g|² with {noisy} noisy copies for "
            f"{diagnosis.dimensions} dimensions: more copies or, with noise at the sites, a larger "
            "batch"
        )


def no_better_than_chance(diagnosis: Findings) -> Iterator[str]:
    """An estimate that cannot be told from a random direction."""
    for name, layer in _hidden(diagnosis) if diagnosis.learns_hidden else ():
        quality = layer.quality
        if quality.gradient == 0 or not quality.norm_ratio.value > 0:
            continue
        cosine, limit = quality.cosine, _chance(layer)
        random = quality.variance.value > 1e-6
        what = "more copies or examples" if random else "probe again once feedback has aligned"
        if abs(cosine.value) <= limit:
            yield (
                f"{name}: cosine {cosine.value:.3f} to the gradient, not to be told from 0 (chance "
                f"explains {limit:.3f}): {what}, or take another estimator"
            )


def uphill(diagnosis: Findings) -> Iterator[str]:
    """An estimate that points away from the gradient."""
    for name, layer in _hidden(diagnosis) if diagnosis.learns_hidden else ():
        cosine = layer.quality.cosine
        if cosine.value < -_chance(layer):
            yield (
                f"{name}: cosine {cosine.value:.2f} to the gradient, so that steps lead uphill: "
                "check the sign of the credit, or let feedback align first"
            )


def _chance(layer: Layer) -> float:
    """Return the largest cosine that chance explains: of noisy draws, or of one fixed direction."""
    quality = layer.quality
    if quality.variance.value > 1e-6:
        return ERRORS * _error(quality.cosine.error)
    return min(ERRORS / math.sqrt(max(quality.compared, 1)), 0.5)


def batch_statistics(diagnosis: Findings) -> Iterator[str]:
    """Copies must share the statistics of batch normalisation, whose gradient is then missing."""
    for name, layer in _hidden(diagnosis) if diagnosis.batch_norm else ():
        cosine = layer.quality.cosine_of_mean.value
        if diagnosis.copies > 1 and cosine < LOW_MEAN_COSINE:
            yield (
                f"{name}: cosine {cosine:.2f} of the mean of {diagnosis.draws} draws: under copies "
                "the statistics of batch normalisation count as constants; normalise by layer "
                "(network.normalisation = 'layer')"
            )


def frozen_noise(diagnosis: Findings) -> Iterator[str]:
    """Noise that is constant over steps tells of the mean current, not of its timing."""
    width = diagnosis.steps if diagnosis.time_bin is None else diagnosis.time_bin
    for name, layer in _hidden(diagnosis) if width > 1 and diagnosis.steps > 1 else ():
        cosine = layer.quality.cosine_of_mean
        if cosine.value < LOW_MEAN_COSINE and cosine.value + ERRORS * _error(cosine.error) < 1:
            yield (
                f"{name}: cosine {cosine.value:.2f} of the mean of {diagnosis.draws} draws, noise "
                f"constant over {width} of {diagnosis.steps} steps, whose credit is shared: set "
                "time_bin = 1"
            )


def vanishing(diagnosis: Findings) -> Iterator[str]:
    """The gradient shrinks or grows by orders of magnitude between hidden layers."""
    sizes = {
        name: layer.quality.gradient / layer.weight_norm
        for name, layer in _hidden(diagnosis)
        if layer.weight_norm > 0 and layer.quality.gradient > 0
    }
    if len(sizes) < 2:
        return
    low, high = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    ratio = sizes[low] / sizes[high]
    if ratio < VANISHED:
        names = list(sizes)
        word = "vanishes" if names.index(low) < names.index(high) else "explodes"
        yield (
            f"{low}: its gradient by weight is {ratio:.0e} of that of {high}: the gradient {word} "
            "on its way back; change network.gain or the activation, normalise, or use local losses"
        )


def uneven(diagnosis: Findings) -> Iterator[str]:
    """One hidden layer gets far more of its gradient than another."""
    shares = {
        name: layer.quality.slope.value
        for name, layer in _hidden(diagnosis)
        if layer.quality.slope.value > ERRORS * _error(layer.quality.slope.error)
    }
    if len(shares) < 2 or not diagnosis.learns_hidden:
        return
    low, high = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
    if shares[high] > UNEVEN * shares[low]:
        yield (
            f"{low}: receives {shares[low]:.2g} of its gradient, {high} {shares[high]:.2g}: one "
            "learning rate cannot suit both; use Adam, or a rate for each layer"
        )


def step_size(diagnosis: Findings) -> Iterator[str]:
    """The optimiser's next step by the size of the weights."""
    for name, layer in diagnosis.layers.items():
        update = layer.update
        if update is None or layer.quality.norm_ratio.value == 0:
            continue
        if update > LARGE_STEP:
            yield f"{name}: one step changes the weights by {update:.0%}: lower the learning rate"
        if update < SMALL_STEP:
            yield f"{name}: one step changes the weights by {update:.0e}: raise the learning rate"


def _error(error: float) -> float:
    return 0.0 if math.isnan(error) else error


def _noise(diagnosis: Findings) -> str:
    return "no noise" if diagnosis.sigma is None else f"sigma = {diagnosis.sigma:g}"


RULES: tuple[Rule, ...] = (
    silent,
    saturated,
    no_gradient,
    no_credit,
    uninformative,
    noise_size,
    at_the_peak,
    few_copies,
    no_better_than_chance,
    uphill,
    batch_statistics,
    frozen_noise,
    vanishing,
    uneven,
    step_size,
)
