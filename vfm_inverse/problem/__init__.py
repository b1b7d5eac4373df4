"""An inverse problem: a prior over fields, and how a field becomes an observation."""

from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problem.simulation import SimulationWarning

__all__ = ["InverseProblem", "SimulationWarning"]
