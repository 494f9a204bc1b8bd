"""The nouns that every stage shares: plan, trace, credit, site and substrate.

Flow of one step::

    estimator.plans(round) -> substrate.run(plan, batch) -> estimator.credit(traces) -> pullback

A *block* is a site with what follows it up to the next one; its output is the site's *activity*.
Credit can be stopped at either end: behind the current (``Plan.cut``), so that nothing above it
need be differentiable, or behind the activity (``Plan.boundaries``), so that a block is
differentiated by itself.

Shapes: ``B`` examples, ``S`` copies (copy 0 is clean, ``m = S - 1`` are noisy), ``K`` time bins in
which a perturbation stays constant (1: frozen over the trial), ``U`` the shape of a site's units.
Credit is the derivative of the *mean* loss: the factor 1/B is always included.
"""

from biograd.contracts.activity_bounds import ActivityBounds
from biograd.contracts.parameter_noise import ParameterNoise
from biograd.contracts.plan import (
    Capability,
    Credit,
    LocalLoss,
    Loss,
    Objective,
    Plan,
    Site,
    SiteShape,
    TimeBin,
    Transport,
    bin_lengths,
    bin_width,
    bins,
)
from biograd.contracts.round import Round, Substrate
from biograd.contracts.trace import SiteTrace, Trace, Visits

__all__ = [
    "ActivityBounds",
    "Capability",
    "Credit",
    "LocalLoss",
    "Loss",
    "Objective",
    "ParameterNoise",
    "Plan",
    "Round",
    "Site",
    "SiteShape",
    "SiteTrace",
    "Substrate",
    "TimeBin",
    "Trace",
    "Transport",
    "Visits",
    "bin_lengths",
    "bin_width",
    "bins",
]
