"""Corrections of a map's draws towards the exact posterior, and a test of whether they are needed.

=================  ==============================================================================
:func:`psis`       Pareto-smoothed importance weights, with their k-hat
:func:`smc`        tempered sequential Monte Carlo from the draws to the posterior
:func:`mcmc`       Markov chains (``hmc``, ``pcn``, ``mala``, Pyro's ``nuts``) started at the draws
:func:`gibbs`      chains over conditional laws, for heavy-tailed priors and linear physics
:func:`auto`       the first of these whose diagnostics are satisfied, observation by observation
:func:`corrected`  ``auto`` as a posterior function: calibrate what it makes
:func:`fit_prior`  a map of the prior, where ``auto`` needs one; :func:`check_prior` checks it
:func:`ksd`        kernel Stein discrepancy of the draws, with a p-value
:func:`conformal`  intervals with guaranteed coverage, from held-out simulations
:func:`refine`     a better variational law for given observations; :func:`model` and
                   :func:`guide` are the posterior and the adapter as Pyro functions
=================  ==============================================================================
"""

from __future__ import annotations

from vfm_inverse.correction.chains import mcmc
from vfm_inverse.correction.conditionals import gibbs
from vfm_inverse.correction.importance import psis
from vfm_inverse.correction.ladder import auto
from vfm_inverse.correction.posteriors import corrected
from vfm_inverse.correction.prior_map import check_prior, fit_prior
from vfm_inverse.correction.pyro_model import guide, model, refine
from vfm_inverse.correction.recalibration import conformal, temperature
from vfm_inverse.correction.stein import ksd
from vfm_inverse.correction.tempering import smc
from vfm_inverse.sampling.ensemble import Ensemble
from vfm_inverse.sampling.target import Target

__all__ = [
    "Ensemble",
    "Target",
    "auto",
    "check_prior",
    "conformal",
    "corrected",
    "fit_prior",
    "gibbs",
    "guide",
    "ksd",
    "mcmc",
    "model",
    "psis",
    "refine",
    "smc",
    "temperature",
]
