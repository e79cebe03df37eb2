"""What every test may rely on: no network, the embedded tracking store, one thread of arithmetic."""

from __future__ import annotations

import os
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
