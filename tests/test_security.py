"""What is promised in docs/security.md."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch

from rairl.core.errors import RairlError

ROOT = Path(__file__).parents[1]
TEXT = {".py", ".yaml", ".yml", ".toml", ".md", ".lock", ".json", ".html", ""}


def files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_weights_load_from_safetensors_alone(tiny_policy: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rairl.models.base import load_source
    from rairl.models.policy import load_policy

    model = AutoModelForCausalLM.from_pretrained(tiny_policy)
    model.config.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_policy).save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(RairlError, match="can't be loaded"):
        load_source("base.source", str(tmp_path), None)
    with pytest.raises(OSError, match="safetensors"):
        load_policy(tmp_path)


def test_nothing_unpickles_and_nothing_runs_a_models_own_code() -> None:
    unsafe = re.compile(r"\bimport (pickle|joblib|dill|cloudpickle)\b|yaml\.load\(|trust_remote_code")
    for path in files():
        if path.suffix == ".py" and path.parts[len(ROOT.parts)] in ("rairl", "components", "pipelines"):
            code = path.read_text()
            assert not unsafe.search(code), path
            for call in re.findall(r"torch\.load\([^\n]*", code):
                assert "weights_only=True" in call, path


def test_a_hub_id_needs_a_pinned_revision() -> None:
    from rairl.models.base import load_source

    with pytest.raises(RairlError, match=r"set base\.revision to the commit to pin"):
        load_source("base.source", "someone/some-model", None)


def test_no_file_holds_what_looks_like_a_credential() -> None:
    looks = re.compile(
        r"hf_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY-----|"
        r"(?i:password|secret|token)\s*[:=]\s*['\"][A-Za-z0-9+/]{12,}['\"]"
    )
    for path in files():
        if path.suffix in TEXT:
            found = looks.search(path.read_text(errors="ignore"))
            assert found is None, f"{path}: {found and found[0][:8]}..."
