"""Neurons: one file each, one line here.

A neuron is data and one step of plain arithmetic (``neurons.neuron``); every simulator and every
derivative follows from it.
"""

from __future__ import annotations

from biograd.neurons.adaptive_current import AdaptiveCurrent
from biograd.neurons.adaptive_threshold import AdaptiveThreshold
from biograd.neurons.alpha import AlphaSynapse
from biograd.neurons.event_driven import EventDriven
from biograd.neurons.integrator import LeakyIntegrator
from biograd.neurons.leaky import Leaky
from biograd.neurons.neuron import Neuron, Spiking
from biograd.neurons.rate import Rate
from biograd.registry import Registry

__all__ = [
    "NEURONS",
    "AdaptiveCurrent",
    "AdaptiveThreshold",
    "AlphaSynapse",
    "EventDriven",
    "Leaky",
    "LeakyIntegrator",
    "Neuron",
    "Rate",
    "Spiking",
]

NEURONS: Registry[type[Neuron]] = Registry(
    "biograd.neurons",
    {
        "leaky": Leaky,
        "alpha": AlphaSynapse,
        "adaptive_threshold": AdaptiveThreshold,
        "adaptive_current": AdaptiveCurrent,
        "integrator": LeakyIntegrator,
        "rate": Rate,
        "event_driven": EventDriven,
    },
)
"""Each kind of neuron by its name in recipes, ``neuron.kind``."""
