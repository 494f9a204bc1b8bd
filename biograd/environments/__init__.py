"""Environments: what a network sees follows from what it has done, and rewards say how well.

To add one: write a class in a file of its own (``interface.Environment``), and name it in
``ENVIRONMENTS``, or in the entry points ``biograd.environments`` of another package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from biograd.checking import Fraction, NotNegativeCount, validate
from biograd.disk.bundled_digits import bundled_digits
from biograd.environments.bandit import Bandit
from biograd.environments.cart_pole import CartPole
from biograd.environments.contextual_bandit import ContextualBandit
from biograd.environments.delayed_reward import DelayedReward
from biograd.environments.episodes import Episodes
from biograd.environments.gymnasium_rows import GymnasiumRows
from biograd.environments.interface import HELD_OUT, RANGES, TESTED, Environment
from biograd.errors import RecipeError
from biograd.registry import Registry

__all__ = [
    "ENVIRONMENTS",
    "HELD_OUT",
    "RANGES",
    "TESTED",
    "Bandit",
    "CartPole",
    "ContextualBandit",
    "DelayedReward",
    "Environment",
    "Episodes",
    "GymnasiumRows",
    "is_environment",
    "taken",
]


def digits_bandit(slips: Fraction = 0.0) -> ContextualBandit:
    """Return the contextual bandit of scikit-learn's digits: 64 pixels, ten answers.

    Args:
        slips: probability that a reward is turned.
    """
    images, classes = bundled_digits()
    return ContextualBandit(images / 16, classes, slips=slips)


def of_gymnasium(name: str = "CartPole-v1", steps: NotNegativeCount = 0) -> GymnasiumRows:
    """Return an environment of gymnasium by its name.

    Args:
        name: as in ``gymnasium.make``.
        steps: most steps of an episode; 0: as it says itself.

    Raises:
        RecipeError: gymnasium is not installed, or has no such environment.
    """
    validate(of_gymnasium, {"name": name, "steps": steps})
    try:
        import gymnasium
    except ImportError as error:
        raise RecipeError(
            "settings.name: gymnasium is not installed: pip install 'biograd[environments]'"
        ) from error

    def make() -> Any:
        try:
            given: dict[str, Any] = {"max_episode_steps": steps} if steps else {}
            return gymnasium.make(name, **given)
        except gymnasium.error.Error as error:
            raise RecipeError(
                f"settings.name = {name!r}: {' '.join(str(error).split())}"
            ) from error

    return GymnasiumRows(make(), make, steps, name)


ENVIRONMENTS: Registry[Callable[..., Environment]] = Registry(
    "biograd.environments",
    {
        "bandit": Bandit,
        "digits_bandit": digits_bandit,
        "delayed_reward": DelayedReward,
        "cart_pole": CartPole,
        "gymnasium": of_gymnasium,
    },
    callables=True,
)


def is_environment(given: Any) -> bool:
    """Return whether ``given`` can be reset and stepped."""
    return callable(getattr(given, "reset", None)) and callable(getattr(given, "step", None))


def taken(given: Any, steps: int = 0, name: str = "") -> Environment:
    """Return an environment of the user's, one of gymnasium's kind in rows.

    Args:
        given: the environment, its class, or a function that makes it.
        steps: most steps of an episode; 0: as it says itself.
        name: opens every message.

    Raises:
        RecipeError: it lacks something.
    """
    make = given if isinstance(given, type) else None
    found = given() if make else given
    name = name or type(found).__name__
    if hasattr(found, "observation_space") and hasattr(found, "action_space"):
        return GymnasiumRows(found, make, steps, name)
    due = {"observation": tuple, "actions": int, "continuous": bool, "horizon": int}
    for key, kind in due.items():
        if not isinstance(getattr(found, key, None), kind):
            raise RecipeError(
                f"{name}: {key} is {getattr(found, key, None)!r}, not a {kind.__name__}: an "
                "environment says its observation, actions, continuous and horizon, or has "
                "gymnasium's observation_space and action_space"
            )
    if steps:
        raise RecipeError(f"settings.steps = {steps}: {name} says itself how long an episode is")
    if found.actions < (1 if found.continuous else 2) or found.horizon < 1:
        raise RecipeError(f"{name}: {found.actions} actions, {found.horizon} steps: too few")
    assert isinstance(found, Environment)
    return found
