"""Predictive coding: decoupled layers whose targets start afresh with every example."""

from __future__ import annotations

from typing import Literal

from biograd.estimators.decoupling import Decoupling, Rate
from biograd.recipes import Count, Positive, validate


class PredictiveCoding(Decoupling):
    """Let the activities settle between the data and the loss, then let every layer learn locally.

    ``decoupling`` with targets that start as the feed-forward activities in every visit and are
    not kept.  With ``mu_{t+1} = f(z_t, theta_t)``, precision ``rho`` and errors
    ``e_t = rho (z_t - mu_t)``, at the outputs ``e = -dL/dout`` (``target - out`` for the squared
    error)::

        z_t     <- z_t + eta/rho (J_t' e_{t+1} - e_t)        steps times
        theta_t <- downhill along -(dmu_{t+1}/dtheta_t)' e_{t+1}

    Args:
        stiffness: ``rho``; large values give back-propagation, and spiking layers need them: a
            target that makes a spike come or go is an error of ``rho``.
        order: "top_down" moves one activity after the other, "jacobi" all at once.
        rate: ``eta``; "jacobi" overshoots beyond ``2 / (1 + |J|)^2``: try 0.2.
        steps: of settling; None: once for each hidden site and once more.
    """

    steady = False
    builds = False
    closed_loop = ""
    unbounded = "hidden layers follow targets into which activity settles"
    reference = "Whittington & Bogacz 2017, doi:10.1162/NECO_a_00949"

    def __init__(
        self,
        stiffness: Positive = 100.0,
        order: Literal["top_down", "jacobi"] = "top_down",
        rate: Rate = 1.0,
        steps: Count | None = None,
    ) -> None:
        validate(PredictiveCoding, locals())
        super().__init__(stiffness, stiffest=stiffness, order=order, rate=rate, steps=steps)
        self.store = None
