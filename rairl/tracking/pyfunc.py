"""A reward model as a self-contained MLflow model."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel


REQUIREMENTS = (
    "mlflow", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic", "pyyaml", "scipy",
    "scikit-learn", "tqdm", "peft",
)  # fmt: skip
"""What loading and scoring import, so that MLflow need not find out by running the model at every registration."""


EXAMPLE = {"problem": "Ann has 3 eggs and buys 4. How many?", "steps": ["3 + 4 = 7"], "answer": "7"}
"""The request that is registered with every model, for whoever wants to try it."""


def requirements() -> list[str]:
    """:data:`REQUIREMENTS` pinned to what is installed, without local build tags such as ``+cpu``."""
    return [f"{name}=={re.sub(r'[+].*', '', version(name))}" for name in REQUIREMENTS]


def save_pyfunc(folder: Path, target: Path, *, model: LoggedModel, run_id: str) -> None:
    """Write a saved reward model as a self-contained MLflow model: weights, this package's code, requirements.

    Args:
        folder: what ``RewardModel.save_pretrained`` wrote.
        target: the folder to make.
        model: the LoggedModel it will belong to.
        run_id: the run that made it.
    """
    import warnings

    import mlflow.pyfunc
    from mlflow.models import Model

    package = Path(__file__).parents[1]
    card = Model(model.artifact_location, run_id, model_uuid=model.model_id, model_id=model.model_id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice to whoever writes the model script
        mlflow.pyfunc.save_model(
            path=str(target),
            python_model=str(package / "use" / "mlflow_model.py"),
            artifacts={"reward": str(folder)},
            code_paths=[str(package)],
            pip_requirements=requirements(),
            mlflow_model=card,
            input_example=[EXAMPLE],
        )
