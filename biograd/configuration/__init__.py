"""What a run is: the request of a user, what they bring along, and what both are resolved into."""

from biograd.configuration.elsewhere import again_on, on_some_device
from biograd.configuration.no_effect import without_effect
from biograd.configuration.own_parts import Metrics, OwnParts
from biograd.configuration.resolved import (
    Configuration,
    Stage,
    configure,
)
from biograd.configuration.same_parts import matching
from biograd.configuration.training_request import TrainingRequest

__all__ = [
    "Configuration",
    "Metrics",
    "OwnParts",
    "Stage",
    "TrainingRequest",
    "again_on",
    "configure",
    "matching",
    "on_some_device",
    "without_effect",
]
