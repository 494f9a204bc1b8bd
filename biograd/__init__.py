"""Train rate and spiking networks with backpropagation and its biological alternatives.

The public names, in the order in which data flow through them::

    network = biograd.build("ann", inputs=64, classes=10)
    engine = biograd.attach(network, biograd.WeakGradient(copies=33, sigma=0.1))
    run = biograd.train("ann", "digits", estimator="weak", seed=0)

Why lazy: torch, snnTorch, Brian2 and h5py take seconds to import, and a line of help or a wrong
option needs none of them.  A name's module is imported when the name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from biograd.errors import (
    BiogradError,
    CapabilityError,
    CheckFailed,
    DataError,
    MissingExtraError,
    RecipeError,
    RunFileError,
)

if TYPE_CHECKING:
    from biograd.block_coordinate import BlockCoordinate
    from biograd.contracts import Site
    from biograd.decorrelation import Decorrelation
    from biograd.engine import attach
    from biograd.estimators import (
        Backpropagation,
        Decoupling,
        DirectFeedback,
        EligibilityPropagation,
        FeedbackAlignment,
        ForwardForward,
        ForwardGradientActivity,
        ForwardGradientWeight,
        FrozenHidden,
        Kickback,
        KolenPollack,
        LikelihoodRatio,
        MeasuredGain,
        NodePerturbation,
        OnlineTrainingThroughTime,
        PredictiveCoding,
        SignSymmetry,
        SpatialLearningThroughTime,
        SyntheticGradient,
        TargetProjection,
        UnitwiseGradient,
        WeakGradient,
        WeightMirror,
        WeightPerturbation,
    )
    from biograd.experiment import load, resume, train, trained
    from biograd.interchange import export_nir, import_nir
    from biograd.local import LocalLosses
    from biograd.networks import build
    from biograd.networks.box import Brian2Box
    from biograd.networks.brian import Brian2Layer
    from biograd.networks.readouts import Readout
    from biograd.networks.wrapping import wrap
    from biograd.recipes import PopulationRecipe
    from biograd.reproduction import reproduce
    from biograd.runs.sonata import export_sonata
    from biograd.studies.comparing import compare
    from biograd.studies.set_file import load_set

__version__ = "0.1.0"

__all__ = [
    "build",
    "wrap",
    "load",
    "Backpropagation",
    "EligibilityPropagation",
    "OnlineTrainingThroughTime",
    "SpatialLearningThroughTime",
    "UnitwiseGradient",
    "WeakGradient",
    "NodePerturbation",
    "MeasuredGain",
    "WeightPerturbation",
    "LikelihoodRatio",
    "ForwardGradientWeight",
    "ForwardGradientActivity",
    "FeedbackAlignment",
    "DirectFeedback",
    "SignSymmetry",
    "Kickback",
    "TargetProjection",
    "WeightMirror",
    "KolenPollack",
    "SyntheticGradient",
    "ForwardForward",
    "Decoupling",
    "PredictiveCoding",
    "FrozenHidden",
    "Decorrelation",
    "LocalLosses",
    "BlockCoordinate",
    "PopulationRecipe",
    "Brian2Layer",
    "Brian2Box",
    "Readout",
    "Site",
    "attach",
    "train",
    "resume",
    "reproduce",
    "trained",
    "compare",
    "load_set",
    "export_sonata",
    "export_nir",
    "import_nir",
    "BiogradError",
    "DataError",
    "RecipeError",
    "CapabilityError",
    "CheckFailed",
    "RunFileError",
    "MissingExtraError",
    "__version__",
]

_HOMES = {
    "build": "biograd.networks",
    "wrap": "biograd.networks.wrapping",
    "load": "biograd.experiment",
    "Backpropagation": "biograd.estimators",
    "EligibilityPropagation": "biograd.estimators",
    "OnlineTrainingThroughTime": "biograd.estimators",
    "SpatialLearningThroughTime": "biograd.estimators",
    "UnitwiseGradient": "biograd.estimators",
    "WeakGradient": "biograd.estimators",
    "NodePerturbation": "biograd.estimators",
    "MeasuredGain": "biograd.estimators",
    "WeightPerturbation": "biograd.estimators",
    "LikelihoodRatio": "biograd.estimators",
    "ForwardGradientWeight": "biograd.estimators",
    "ForwardGradientActivity": "biograd.estimators",
    "FeedbackAlignment": "biograd.estimators",
    "DirectFeedback": "biograd.estimators",
    "SignSymmetry": "biograd.estimators",
    "Kickback": "biograd.estimators",
    "TargetProjection": "biograd.estimators",
    "WeightMirror": "biograd.estimators",
    "KolenPollack": "biograd.estimators",
    "SyntheticGradient": "biograd.estimators",
    "ForwardForward": "biograd.estimators",
    "Decoupling": "biograd.estimators",
    "PredictiveCoding": "biograd.estimators",
    "FrozenHidden": "biograd.estimators",
    "Decorrelation": "biograd.decorrelation",
    "LocalLosses": "biograd.local",
    "BlockCoordinate": "biograd.block_coordinate",
    "PopulationRecipe": "biograd.recipes",
    "Brian2Layer": "biograd.networks.brian",
    "Brian2Box": "biograd.networks.box",
    "Readout": "biograd.networks.readouts",
    "Site": "biograd.contracts",
    "attach": "biograd.engine",
    "train": "biograd.experiment",
    "resume": "biograd.experiment",
    "reproduce": "biograd.reproduction",
    "trained": "biograd.experiment",
    "compare": "biograd.studies.comparing",
    "load_set": "biograd.studies.set_file",
    "export_sonata": "biograd.runs.sonata",
    "export_nir": "biograd.interchange",
    "import_nir": "biograd.interchange",
}


def __getattr__(name: str) -> Any:
    """Import the home of a public name on its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'biograd' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
