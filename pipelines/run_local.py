"""Run the pipeline on this machine, each task in a process of its own: ``python -m pipelines.run_local``.

Tasks whose code, parameters and inputs are unchanged come from kfp's cache under the output folder.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from rairl.params import Params, load_params
from rairl.stages import code_digest, input_files_digest


def without_nulls(value: Any) -> Any:
    """``value`` without the None entries of its dicts, which a pipeline's dict parameter cannot hold."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return value


def run(params: Params, root: Path) -> dict[str, Path]:
    """Run every stage under ``root``; return the paths of the report, the merged metrics and the reward model."""
    # kfp's cache does not see the package or the files that the parameters name; the image's tag stands for both
    os.environ["RAIRL_IMAGE"] = f"rairl-python:{code_digest()}-{input_files_digest(params)}"
    from kfp import local

    from pipelines.pipeline import pipeline

    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(root.resolve()), enable_caching=True)
    done = pipeline(params=without_nulls(params.model_dump()))
    return {name: Path(artifact.path) for name, artifact in done.outputs.items()}


def main() -> None:
    """Read the command line, run, and say where the results are."""
    parser = argparse.ArgumentParser(description="Run the Kubeflow pipeline on this machine")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--root", type=Path, default=Path("local_outputs"), help="folder of the tasks' outputs")
    args = parser.parse_args()
    for name, path in run(load_params(args.params), args.root).items():
        print(f"{name}: {path}")


if __name__ == "__main__":
    main()
