"""Learn process-level reasoning rewards from expert demonstrations (R-AIRL).

import rairl
reward = rairl.load("models/reward")
result = reward.score(problem, solution)  # result.score, result.steps, result.first_error
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rairl.core.traces import Trace
    from rairl.models.reward import RewardModel
    from rairl.use.load import load

__version__ = "0.1.0"
__all__ = ["RewardModel", "Trace", "load"]

_HOMES = {"RewardModel": "rairl.models.reward", "Trace": "rairl.core.traces", "load": "rairl.use.load"}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: the command line must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rairl' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
