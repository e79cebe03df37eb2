"""What a run needs is counted right, a run that can't fit is refused, and every check says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from rairl.core.errors import RairlError
from rairl.core.params import Params, load_params, parse_params
from rairl.preflight import doctor as preflight
from rairl.preflight.doctor import GPUS, SIZES, architecture, doctor, find_gpu, needs
from rairl.preflight.presets import FOLDER, compose, merged

QWEN25_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
}  # fmt: skip
QWEN3_4B = {
    "model_type": "qwen3", "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "head_dim": 128,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip


def test_sizes_are_the_published_ones() -> None:
    assert architecture(QWEN25_7B).parameters == 7_615_616_512
    assert architecture(QWEN3_4B).parameters == 4_022_468_096
    with pytest.raises(RairlError, match="not for 'gpt2'"):
        architecture({"model_type": "gpt2"})


def test_the_presets_models_have_their_published_sizes() -> None:
    published = {
        "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
        "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
        "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
        "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
        "Qwen/Qwen3-4B-Instruct-2507": 4_022_468_096,
        "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
        "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
        "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    }
    assert {name: sizes.parameters for name, sizes in SIZES.items()} == published
    named = {
        yaml.safe_load(file.read_text())[section][key]
        for axis, section, key in (("model", "base", "source"), ("reward", "reward", "backbone"))
        for file in (FOLDER / axis).glob("*.yaml")
    }
    assert named == set(SIZES)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_sizes_and_adapters_equal_those_of_models_that_are_built(kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from rairl.models.adapters import add_lora

    values = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 64, "head_dim": 16 if kind == "qwen3" else 8,
    }  # fmt: skip
    config = AutoConfig.for_model(kind, **values)
    model = AutoModelForCausalLM.from_config(config)
    sizes = architecture({**values, "model_type": kind, "tie_word_embeddings": config.tie_word_embeddings})
    assert sizes.parameters == sum(value.numel() for value in model.parameters())
    add_lora(model, 3, seed=0)
    assert sizes.adapters(3) == sum(value.numel() for value in model.parameters() if value.requires_grad)


def cell(folder: Path, config: dict[str, object], *words: str) -> Params:
    """A published cell whose model is a folder with nothing but its configuration."""
    (folder / "config.json").write_text(json.dumps(config))
    values = compose(["dataset=gsm8k", "model=qwen3-4b", "method=interval", *words])
    return parse_params(merged(values, {"base": {"source": str(folder)}}))


LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip


@pytest.mark.parametrize("config", [QWEN25_7B, QWEN3_4B, LLAMA_8B], ids=lambda config: config["model_type"])
def test_a_published_cell_fits_one_gpu_of_80_gb_by_the_formulas(tmp_path: Path, config: dict[str, object]) -> None:
    assert needs(cell(tmp_path, config), GPUS["h100"], 1).problem is None


def test_a_run_that_cannot_fit_says_what_to_lower(tmp_path: Path) -> None:
    lines, problem = needs(cell(tmp_path, QWEN3_4B, "reward.gradient_checkpointing=false"), GPUS["h100"], 1)
    assert problem is not None and "update reward" in problem and "reward.gradient_checkpointing" in problem
    text = "\n".join(lines)
    assert "policy 4.02 billion, reward 4.02" in text and "tokens per iteration: 143,872 at most" in text
    assert "hours of the rairl stage" in text
    assert "a smaller model" in str(needs(cell(tmp_path, QWEN25_7B), GPUS["rtx 4090"], 1).problem)


def gigabytes(params: Params) -> dict[str, float]:
    lines = [line.removeprefix("GB per GPU, ").split(": ") for line in needs(params, GPUS["h100"], 1).lines]
    return {line[0]: float(line[1]) for line in lines if len(line) == 2 and line[1].replace(".", "").isdigit()}


def test_what_makes_weights_and_updates_smaller_is_counted(tmp_path: Path) -> None:
    usual = gigabytes(cell(tmp_path, LLAMA_8B))
    assert (usual["policy"], usual["reward"]) == (16.1, 0.0)  # one body in bfloat16
    exact = gigabytes(cell(tmp_path, LLAMA_8B, "base.dtype=float32", "reward.dtype=float32"))
    assert exact["policy"] == 32.1
    two = gigabytes(cell(tmp_path, LLAMA_8B, "reward.backbone=base"))
    assert two["reward"] == 16.1 and two["peak"] == pytest.approx(usual["peak"] + 16.1, abs=0.1)
    plain = gigabytes(cell(tmp_path, LLAMA_8B, "policy.optimizer=adamw", "reward.optimizer=adamw"))
    adam = "adapters, gradients, Adam"
    assert (usual[adam], plain[adam]) == (13.4, 21.5)  # of 1.34 billion adapter weights 10 bytes, and 16
    less = gigabytes(cell(tmp_path, LLAMA_8B, "policy.gradient_checkpointing=true"))
    assert less["update policy"] < usual["update policy"] / 3


def test_the_default_fits_anywhere(root: Path) -> None:
    assert needs(load_params(root / "params.yaml"), GPUS["rtx 4090"], 1).problem is None


def test_a_gpu_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_gpu("A100") == (GPUS["a100"], "A100")
    with pytest.raises(RairlError, match="one of h100, h200"):
        find_gpu("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_gpu(None)[0] == GPUS["h100"]


def test_a_source_without_configuration_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: object, **__: object) -> str:
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(RairlError, match=r"some/model: no folder .*rairl doctor.*its config\.json is enough"):
        preflight.read_config("some/model", None)


def test_the_doctor_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    class Hub:
        def dataset_info(self, name: str, **_: object) -> None:
            raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    found = list(doctor(cell(tmp_path, QWEN3_4B), tmp_path))
    assert "bitsandbytes" in {finding.text.split(":")[0] for finding in found}
    bad = {finding.text.split(":")[0] for finding in found if not finding.good}
    assert {"GPU", "hub", "MLflow"} <= bad
    assert all(finding.remedy for finding in found if not finding.good)
    assert any(finding.text.startswith("disk:") and "needed" in finding.text for finding in found)


def test_a_run_asks_first_for_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError

    from typer.testing import CliRunner

    from rairl.cli.main import app

    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    file = tmp_path / "params.yaml"
    monkeypatch.setattr(preflight, "version", absent)
    file.write_text(yaml.safe_dump(cell(tmp_path, QWEN3_4B).model_dump()))
    done = CliRunner().invoke(app, ["run", "--params", str(file), "--dir", str(tmp_path / "out")])
    assert isinstance(done.exception, RairlError)
    assert "bitsandbytes: not installed, which these parameters need: " in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_the_doctor_is_content_with_the_default(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = list(doctor(load_params(root / "params.yaml"), tmp_path))
    assert {finding.text.split(":")[0] for finding in found if not finding.good} <= {"math-verify"}
