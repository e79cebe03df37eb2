"""The package as a stranger installs it: a wheel, away from the checkout; the page about the API runs as a script."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from rairl.core.params import Params, load_params
from rairl.models.reward import new_reward

pytest.importorskip("setuptools", minversion="77", reason="a wheel is built with setuptools")
PAGE = (ROOT / "docs" / "python.md").read_text()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel, built from a copy: an old ``build/`` of the checkout would go into it."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("rairl", "components", "pipelines"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", "dist", "."]
    subprocess.run(build, cwd=folder, check=True, capture_output=True)
    [wheel] = (folder / "dist").glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", folder / "site", wheel], check=True)
    return folder / "site"


def python(installed: Path, folder: Path, *words: str) -> str:
    """Output of Python in ``folder``, where the package is the installed one."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_of_the_page_runs(installed: Path, tmp_path: Path, tiny_policy: Path, miniature: Params) -> None:
    model = new_reward(tiny_policy, miniature.reward, seed=0).calibrated(aggregator="min", threshold=0.0)
    model.head[-1].bias.data.fill_(-1.0)
    model.save_pretrained(tmp_path / "models" / "reward")
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    code += (
        "\nimport json, dataclasses\nprint(rairl.__file__)\nprint(json.dumps([dataclasses.asdict(r) for r in results]))"
    )
    *_, file, printed = python(installed, tmp_path, "-c", code).splitlines()
    assert Path(file).is_relative_to(installed)
    first, second = json.loads(printed)
    assert [step["text"] for step in second["steps"]] == ["3 * 10 = 30", "30 + 6 = 36", "36 / 2 = 18"]
    assert first["score"] == min(step["score"] for step in first["steps"]) and first["first_error"] == 0


def test_presets_and_configurations_come_with_it(installed: Path, tmp_path: Path) -> None:
    rairl = ["-m", "rairl", "params"]
    names = python(installed, tmp_path, *rairl).split()
    assert names == ["arithmetic", "arithmetic-gpu", "gsm8k-logged"]
    (tmp_path / "default.yaml").write_text(python(installed, tmp_path, *rairl, "--preset", "arithmetic"))
    assert load_params(tmp_path / "default.yaml") == load_params(ROOT / "params.yaml")
    python(installed, tmp_path, *rairl, "dataset=gsm8k", "model=qwen3-4b", "method=interval")
    assert load_params(tmp_path / "params.yaml").base.source == "Qwen/Qwen3-4B-Instruct-2507"
    code = (
        "from pipelines.run import CLUSTER; from rairl.kubeflow.task import ACCELERATE\n"
        "print(CLUSTER, *ACCELERATE.iterdir())"
    )
    files = [Path(word) for word in python(installed, tmp_path, "-c", code).split()]
    assert len(files) == 7 and all(file.is_file() and file.is_relative_to(installed) for file in files)


def test_the_public_names_are_three_and_import_nothing_before_they_are_asked_for(tmp_path: Path) -> None:
    code = "import sys, rairl; print(*rairl.__all__, *({'torch', 'numpy'} & set(sys.modules)))"
    assert python(ROOT, tmp_path, "-c", code).split() == ["RewardModel", "Trace", "load"]
