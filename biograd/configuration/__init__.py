"""What a run is: the request of a user, what they bring along, and what both are resolved into."""

from biograd.configuration.own_parts import OwnParts
from biograd.configuration.resolved import (
    Configuration,
    Stage,
    check_device,
    configure,
    without_effect,
)
from biograd.configuration.same_parts import matching
from biograd.configuration.training_request import TrainingRequest

__all__ = [
    "Configuration",
    "OwnParts",
    "Stage",
    "TrainingRequest",
    "check_device",
    "configure",
    "matching",
    "without_effect",
]
