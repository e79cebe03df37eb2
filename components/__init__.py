"""One Kubeflow component per stage: typed inputs and outputs, and a body that calls the stage.

Modules here import the standard library and kfp at the top and nothing else, so that the pipeline compiles on a machine
without the learning stack. The package itself is in the image and is imported when a task runs.
"""

import os
from collections.abc import Callable
from typing import Any

from kfp import dsl

IMAGE = os.environ.get("RAIRL_IMAGE", "rairl-python:0.1.0")
"""Image of every task. Its tag stands for the code in kfp's cache keys, so a new build needs a new tag."""


def component(function: Callable[..., Any]) -> dsl.base_component.BaseComponent:
    """Make a lightweight component that runs in the project's image, where kfp is installed already."""
    return dsl.component(function, base_image=IMAGE, install_kfp_package=False)
