"""The front door: a trained map that answers an observation with a posterior distribution.

The names are imported when they are first used, so that a card is read without torch.
"""

from typing import TYPE_CHECKING, Any

from vfm_inverse.runtime.lazy import lookup

if TYPE_CHECKING:
    from vfm_inverse.posterior.answer import Answer, Condition, Networks
    from vfm_inverse.posterior.push_forward import PushForward
    from vfm_inverse.posterior.variational import VariationalFlowMap

__all__ = ["Answer", "Condition", "Networks", "PushForward", "VariationalFlowMap"]

HOMES = {
    "Answer": "vfm_inverse.posterior.answer",
    "Condition": "vfm_inverse.posterior.answer",
    "Networks": "vfm_inverse.posterior.answer",
    "PushForward": "vfm_inverse.posterior.push_forward",
    "VariationalFlowMap": "vfm_inverse.posterior.variational",
}


def __getattr__(name: str) -> Any:
    return lookup(__name__, HOMES, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
