"""A pole on a cart that is pushed to the left or right."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from biograd.checking import Count, NotNegative, Positive, validate
from biograd.environments.chance import uniform
from biograd.environments.interface import Step


class CartPole:
    """Balance a pole: 1 for every step until it leans too far, or the cart leaves the track.

    With the force ``F = -+force``, the whole mass ``M``, the pole's mass ``m`` and half length
    ``l``, friction ``c`` of the cart on the track and ``p`` of the pole on the cart::

        f = (-F - m l w^2 sin(h) + c sgn(v)) / M
        dw/dt = (g sin(h) + cos(h) f - p w / (m l)) / (l (4/3 - m cos(h)^2 / M))
        dv/dt = (F + m l (w^2 sin(h) - dw/dt cos(h)) - c sgn(v)) / M

    of place, speed ``v``, angle ``h`` from the upright and its speed ``w``, by Euler's method.  An
    episode begins with all four drawn between -0.05 and 0.05, and is truncated after ``steps``.
    The observation is the state: m, m/s, rad, rad/s.

    Args:
        steps: most steps of an episode.
        force: in newtons.
        cart_friction, pole_friction: ``c`` and ``p``.
        dt_ms: length of a step.

    Source: Barto, Sutton and Anderson, IEEE Transactions on Systems, Man, and Cybernetics 13:834
    (1983), appendix; failure at 12 degrees and 2.4 m as there.
    """

    continuous, actions = False, 2
    observation: tuple[int, ...] = (4,)
    GRAVITY, CART, POLE, HALF = 9.8, 1.0, 0.1, 0.5
    TRACK, LEAN = 2.4, math.radians(12)

    def __init__(
        self,
        steps: Count = 200,
        force: Positive = 10.0,
        cart_friction: NotNegative = 0.0005,
        pole_friction: NotNegative = 0.000002,
        dt_ms: Positive = 20.0,
    ) -> None:
        validate(CartPole, locals())
        self.horizon, self.force, self.dt = steps, force, dt_ms / 1000
        self.frictions = (cart_friction, pole_friction)
        self.solved = 0.975 * steps

    def reset(self, seed: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Put the pole up in each row."""
        self.time = 0
        self.state = 0.1 * uniform(seed, "start", 0, 4) - 0.05
        return self.state, {}

    def accelerations(self, state: Tensor, push: Tensor) -> tuple[Tensor, Tensor]:
        """Return those of cart and angle, ``[B]`` each, under a force ``[B]``."""
        _place, speed, angle, turning = state.unbind(1)
        mass, arm = self.CART + self.POLE, self.POLE * self.HALF
        on_cart, on_pole = self.frictions
        sine, cosine, drag = angle.sin(), angle.cos(), on_cart * speed.sign()
        carried = (-push - arm * turning.square() * sine + drag) / mass
        spin = self.GRAVITY * sine + cosine * carried - on_pole * turning / arm
        spin = spin / (self.HALF * (4 / 3 - self.POLE * cosine.square() / mass))
        return (push + arm * (turning.square() * sine - spin * cosine) - drag) / mass, spin

    def step(self, action: Tensor) -> Step:
        """Push to the left (0) or right (1) in each row."""
        push = self.force * (2.0 * action.double() - 1)
        place, speed, angle, turning = self.state.unbind(1)
        along, spin = self.accelerations(self.state, push)
        self.state = torch.stack(
            (
                place + self.dt * speed,
                speed + self.dt * along,
                angle + self.dt * turning,
                turning + self.dt * spin,
            ),
            1,
        )
        self.time += 1
        fallen = (self.state[:, 0].abs() > self.TRACK) | (self.state[:, 2].abs() > self.LEAN)
        late = torch.full_like(fallen, self.time >= self.horizon)
        return self.state, torch.ones_like(push), fallen, late, {}
