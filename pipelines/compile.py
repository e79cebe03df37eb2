"""Compile the pipeline: ``python -m pipelines.compile [rairl.yaml]``; the image comes from RAIRL_IMAGE."""

import sys
from pathlib import Path

from kfp import compiler

from pipelines.pipeline import pipeline


def compile_to(path: Path) -> None:
    """Write the pipeline's specification to ``path`` (YAML)."""
    compiler.Compiler().compile(pipeline, str(path))


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "rairl.yaml")
    compile_to(target)
    print(f"wrote {target}; submit it with kfp's client or upload it in the Kubeflow Pipelines page")
