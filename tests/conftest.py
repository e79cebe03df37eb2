"""What every test may rely on: no network, the embedded tracking store, one thread of arithmetic."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rairl.params import Params, parse_params

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"

for name, value in {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ[name] = value
os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the project; the test is skipped where there is none."""
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there")
    return DATA


@pytest.fixture
def miniature() -> Params:
    """Parameters so small that the whole pipeline runs in a minute."""
    return parse_params(yaml.safe_load((ROOT / "tests" / "miniature.yaml").read_text()), source="tests/miniature.yaml")


@pytest.fixture(scope="session")
def first_store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A tracking store made by a stage in a fresh project (it takes MLflow seconds), and what the console showed."""
    folder = tmp_path_factory.mktemp("first")
    code = (
        "import sys; from pathlib import Path\n"
        "from rairl.params import load_params; from rairl.tracking import stage_run\n"
        "params = load_params(sys.argv[1]); tracking = params.tracking.model_copy(update={'experiment': 'first'})\n"
        "params = params.model_copy(update={'tracking': tracking})\n"
        "with stage_run('sft', params, log_dir=Path('metrics')) as run: run.log({'loss': 1.0}, 0)\n"
    )
    command = [sys.executable, "-c", code, str(ROOT / "tests" / "miniature.yaml")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return folder / "mlflow.db", done.stdout + done.stderr


@pytest.fixture
def project(tmp_path: Path, first_store: tuple[Path, str]) -> Path:
    """An empty project folder with a tracking store that is ready and holds no run of the experiment ``rairl``."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copyfile(first_store[0], folder / "mlflow.db")
    return folder
