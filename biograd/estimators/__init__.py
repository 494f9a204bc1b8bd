"""The estimators: each decides how forward passes are run and what credit every layer gets.

To add one: write a class in a file of its own, and name it in ``ESTIMATORS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from biograd.estimators.backpropagation import Backpropagation
from biograd.estimators.decoupling import Decoupling
from biograd.estimators.direct_feedback import DirectFeedback
from biograd.estimators.eprop import EligibilityPropagation
from biograd.estimators.estimator import Estimator
from biograd.estimators.feedback_alignment import FeedbackAlignment
from biograd.estimators.forward_forward import ForwardForward
from biograd.estimators.forward_gradient_activity import ForwardGradientActivity
from biograd.estimators.forward_gradient_weight import ForwardGradientWeight
from biograd.estimators.frozen_hidden import FrozenHidden
from biograd.estimators.gain import MeasuredGain
from biograd.estimators.kickback import Kickback
from biograd.estimators.likelihood_ratio import LikelihoodRatio
from biograd.estimators.node_perturbation import NodePerturbation
from biograd.estimators.ottt import OnlineTrainingThroughTime
from biograd.estimators.predictive_coding import PredictiveCoding
from biograd.estimators.sign_symmetry import SignSymmetry
from biograd.estimators.sltt import SpatialLearningThroughTime
from biograd.estimators.synthetic_gradient import SyntheticGradient
from biograd.estimators.target_projection import TargetProjection
from biograd.estimators.three_factor import ThreeFactor
from biograd.estimators.unitwise import UnitwiseGradient
from biograd.estimators.weak_gradient import WeakGradient
from biograd.estimators.weight_mirror import KolenPollack, WeightMirror
from biograd.estimators.weight_perturbation import WeightPerturbation
from biograd.recipes import construct
from biograd.registry import Registry

__all__ = [
    "ESTIMATORS",
    "Backpropagation",
    "Decoupling",
    "DirectFeedback",
    "EligibilityPropagation",
    "Estimator",
    "FeedbackAlignment",
    "ForwardForward",
    "ForwardGradientActivity",
    "ForwardGradientWeight",
    "FrozenHidden",
    "Kickback",
    "KolenPollack",
    "LikelihoodRatio",
    "MeasuredGain",
    "NodePerturbation",
    "OnlineTrainingThroughTime",
    "PredictiveCoding",
    "SignSymmetry",
    "SpatialLearningThroughTime",
    "SyntheticGradient",
    "TargetProjection",
    "ThreeFactor",
    "UnitwiseGradient",
    "WeakGradient",
    "WeightMirror",
    "WeightPerturbation",
    "make",
]

ESTIMATORS: Registry[type[Estimator]] = Registry(
    "biograd.estimators",
    {
        "backprop": Backpropagation,
        "feedback_alignment": FeedbackAlignment,
        "sign_symmetry": SignSymmetry,
        "weight_mirror": WeightMirror,
        "kolen_pollack": KolenPollack,
        "direct_feedback": DirectFeedback,
        "target_projection": TargetProjection,
        "kickback": Kickback,
        "eprop": EligibilityPropagation,
        "ottt": OnlineTrainingThroughTime,
        "sltt": SpatialLearningThroughTime,
        "unitwise": UnitwiseGradient,
        "weak": WeakGradient,
        "node_perturbation": NodePerturbation,
        "three_factor": ThreeFactor,
        "gain": MeasuredGain,
        "weight_perturbation": WeightPerturbation,
        "likelihood_ratio": LikelihoodRatio,
        "forward_gradient_weight": ForwardGradientWeight,
        "forward_gradient_activity": ForwardGradientActivity,
        "synthetic_gradient": SyntheticGradient,
        "decoupling": Decoupling,
        "predictive_coding": PredictiveCoding,
        "forward_forward": ForwardForward,
        "frozen_hidden": FrozenHidden,
    },
)


def make(name: str, settings: Mapping[str, Any] | None = None, where: object = "") -> Estimator:
    """Return the estimator ``name`` with ``settings``, checked like every recipe.

    Raises:
        RecipeError: no such estimator, or a setting that it does not have.

    >>> make("weak", {"copies": 9}).copies
    9
    """
    rule = ESTIMATORS.find(name, f"{where}: estimator" if where else "estimator")
    return construct(rule, settings or {}, where or "estimator", f"estimators.{name}")
