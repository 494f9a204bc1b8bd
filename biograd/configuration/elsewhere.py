"""A run on another device than the one that it was trained on."""

from __future__ import annotations

import dataclasses
import logging

from biograd import devices
from biograd.configuration.resolved import Configuration
from biograd.errors import RecipeError

log = logging.getLogger(__name__)


def again_on(device: str | None, configuration: Configuration, path: object) -> Configuration:
    """Return the configuration of a run that goes on on a device, by default on its own.

    Raises:
        RecipeError: the device is not here, or of another kind than the run's.
    """
    before = configuration.device
    if device in (None, "auto"):
        return configuration.here(f"{path}: the run was on {before}")
    configuration = dataclasses.replace(configuration, device=str(device)).here()
    if devices.kind(configuration.device) != devices.kind(before):
        raise RecipeError(
            f"{path}: --device {device}: the run was on {before}, and its random numbers go on "
            "there alone: give a device of that kind, or train anew"
        )
    return configuration


def on_some_device(device: str | None, configuration: Configuration, path: object) -> Configuration:
    """Return the configuration of a run that is looked at, or repeated, on a device.

    Args:
        device: None: that of the run, or the CPU where there is none such.

    Raises:
        RecipeError: the device is not here.
    """
    if device is not None:
        return dataclasses.replace(configuration, device=device).here()
    try:
        return configuration.here()
    except RecipeError:
        before = configuration.device
        log.warning("%s: the run was on %s, which is not here: on the CPU", path, before)
        return dataclasses.replace(configuration, device="cpu").here()
