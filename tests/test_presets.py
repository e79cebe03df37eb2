"""Presets compose, and every published configuration has the values of the published runs."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest

from rairl.core.errors import RairlError
from rairl.core.params import Params, load_params, parse_params
from rairl.learn.learner import MAX_NORM
from rairl.models.reads import INTERVAL
from rairl.preflight import presets
from rairl.preflight.doctor import GPUS, needs

MODELS = {
    "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
    "qwen3-4b": "Qwen/Qwen3-4B-Instruct-2507",
    "qwen2.5-3b": "Qwen/Qwen2.5-3B-Instruct",
    "llama-3.2-3b": "meta-llama/Llama-3.2-3B-Instruct",
}


def composed(*words: str) -> Params:
    return parse_params(presets.compose(words))


def test_the_presets_are_those_of_the_published_runs() -> None:
    assert presets.names("dataset") == ["gsm8k", "medreason", "mmlu_pro"]
    assert presets.names("model") == sorted(MODELS)
    assert presets.names("method") == ["dense", "interval", "sparse", "step", "v1", "v2"]


def test_the_default_parameters_come_with_the_package(root: Path) -> None:
    kept = (root / "params.yaml").read_text()
    assert (presets.FOLDER / "arithmetic.yaml").read_text() == kept, "cp params.yaml rairl/presets/arithmetic.yaml"


def published_optimiser(params: Params) -> bool:
    """Of all versions: paged AdamW of 8 bits, betas .9 and .99, weight decay .1; gradients are clipped to norm 1."""
    return MAX_NORM == 1.0 and all(
        (part.optimizer, part.adam_beta2, part.weight_decay) == ("paged_adamw_8bit", 0.99, 0.1)
        for part in (params.policy, params.reward)
    )


@pytest.mark.parametrize("dataset", presets.names("dataset"))
def test_every_cell_of_version_2_and_later_has_the_published_values(dataset: str) -> None:
    for model, granularity in product(MODELS, ("sparse", "step", "interval", "dense")):
        params = composed(f"dataset={dataset}", f"model={model}", f"method={granularity}")
        assert params.base.source == MODELS[model] and params.seed == 42 == params.dataset.split_seed  # type: ignore[union-attr]
        policy, reward = params.policy, params.reward
        assert (policy.train, policy.lora_rank, reward.train, reward.lora_rank) == ("lora", 256, "lora", 256)
        assert (policy.learning_rate, reward.learning_rate) == (5e-6, 1e-5)
        assert (policy.iterations, policy.warmup_iterations / policy.iterations) == (400, 0.1)
        assert (reward.updates_per_iteration, reward.warmup_updates) == (3, 250)
        assert policy.learning_rate_schedule == reward.learning_rate_schedule == "cosine"
        assert reward.learning_rate_warmup / (250 + 400 * 3) == 0.1
        assert published_optimiser(params)
        assert (policy.prompts_per_iteration, policy.group_size) == (16, 8)
        assert (reward.replay_size, reward.demos_per_update) == (50 * 16 * 8, 8)
        assert (policy.kl, reward.clip) == (0.1, 2.0 if dataset == "mmlu_pro" else 5.0)
        assert (policy.temperature, policy.max_new_tokens, reward.weight_decay) == (1.0, 824, 0.1)
        assert (reward.granularity, INTERVAL) == (granularity, 15)
        assert (policy.start, reward.backbone) == ("base", "shared")  # both on the instruct model
        assert (reward.head, reward.objective) == ("linear", "bce")
        assert (params.base.dtype, reward.dtype) == ("bfloat16", "bfloat16")
        assert (reward.label_smoothing, reward.switch_labels, reward.credit) == (0.1, True, "mean")
        assert (reward.perturbations, reward.perturbation_depth) == (1, 3)
        assert (params.sft.learning_rate, params.sft.train, params.sft.lora_rank) == (1e-5, "lora", 256)
        assert (params.sample.n, params.sample.temperatures[0], params.report.bootstrap) == (16, 0.5, 1000)


@pytest.mark.parametrize(
    ("model", "body", "rate"),
    [
        ("llama-3.2-3b", "llama-3.2-1b", 1e-4),
        ("qwen2.5-3b", "qwen2.5-0.5b", 1e-5),
        ("qwen2.5-7b", "qwen2.5-1.5b", 1e-5),
    ],
)
def test_version_1_has_the_published_values(model: str, body: str, rate: float) -> None:
    words = ["dataset=gsm8k", f"model={model}", "method=v1", f"reward={body}"]
    params = composed(*words, *(["policy.learning_rate=1e-4"] if rate == 1e-4 else []))
    policy, reward = params.policy, params.reward
    assert (policy.lora_rank, reward.lora_rank, policy.learning_rate, reward.learning_rate) == (128, 32, rate, 1e-5)
    assert (policy.iterations, reward.updates_per_iteration, policy.group_size) == (500, 1, 16)
    assert policy.prompts_per_iteration * policy.group_size == 16 * 2
    assert (reward.replay_size, reward.switch_labels, reward.clip, reward.perturbations) == (0, False, None, 2)
    assert (reward.granularity, reward.credit, reward.discount) == ("dense", "return", 0.9)
    assert policy.start == "base" and published_optimiser(params)
    assert policy.learning_rate_schedule == reward.learning_rate_schedule == "constant"  # theirs is not known
    assert reward.backbone.split("-")[-2].lower() in body and params.sample.temperatures[0] == 1.0


@pytest.mark.parametrize("method", presets.names("method"))
def test_every_combination_composes_and_can_be_planned_without_the_hub(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object, **__: object) -> str:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", asked)
    bodies = ["", *presets.names("reward")] if method == "v1" else [""]
    for dataset, model, body in product(presets.names("dataset"), MODELS, bodies):
        words = [f"dataset={dataset}", f"model={model}", f"method={method}", *([f"reward={body}"] if body else [])]
        lines, _ = needs(composed(*words), GPUS["h100"], 1)
        assert any(line.startswith("hours of the rairl stage") for line in lines), words


def test_the_published_splits() -> None:
    mmlu = composed("dataset=mmlu_pro", "model=qwen3-4b", "method=sparse").dataset
    med = composed("dataset=medreason", "model=qwen3-4b", "method=sparse").dataset
    assert (mmlu.test, mmlu.dev) == (med.test, med.dev) == (1500, 1500)  # type: ignore[union-attr]
    assert med.sources == ["medqa", "medmcqa"] and med.max_solution_words == 1023  # type: ignore[union-attr]


def test_a_later_word_wins_and_mistakes_are_named() -> None:
    words = ("dataset=gsm8k", "model=qwen3-4b", "method=interval")
    params = composed(*words, "policy.kl=5e-2", "policy.kl=0.2", "sample.temperatures=[1.0]", "reward.clip=null")
    assert (params.policy.kl, params.sample.temperatures, params.reward.clip) == (0.2, [1.0], None)
    for wrong, message in (
        (("dataset=gsm8k", "method=interval"), "name model="),
        ((*words, "model=gpt"), "model=gpt is unknown; one of llama-3.1-8b"),
        ((*words, "model=qwen3"), r"model=qwen3 is unknown; did you mean qwen3-4b\? one of"),
        ((*words, "policy.kl"), "'policy.kl' is not of the form key=value"),
        ((*words, "policy.kll=1"), "unknown key 'policy.kll'"),
    ):
        with pytest.raises(RairlError, match=message):
            composed(*wrong)


def test_revisions_are_pinned_where_they_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    class Hub:
        def model_info(self, name: str) -> SimpleNamespace:
            return SimpleNamespace(sha=f"model:{name}")

        def dataset_info(self, name: str) -> SimpleNamespace:
            return SimpleNamespace(sha=f"data:{name}")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    words = ["dataset=gsm8k", "model=qwen3-4b", "method=interval", "dataset.test_revision=abc"]
    params = parse_params(presets.pin(presets.compose(words)))
    assert params.base.revision == "model:Qwen/Qwen3-4B-Instruct-2507" and params.reward.revision is None
    assert (params.dataset.demos_revision, params.dataset.test_revision) == ("data:openai/gsm8k", "abc")  # type: ignore[union-attr]

    def offline(self: object, name: str) -> None:
        raise OSError("offline")

    monkeypatch.setattr(Hub, "model_info", offline)
    with pytest.raises(RairlError, match=r"base\.revision: the hub gives no commit of Qwen/Qwen3"):
        presets.pin(presets.compose(words))


def test_the_command_writes_what_it_validated(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from rairl.cli.main import app

    file = tmp_path / "params.yaml"
    words = ["dataset=medreason", "model=llama-3.1-8b", "method=dense", "seed=3"]
    done = CliRunner().invoke(app, ["params", *words, "-o", str(file)])
    assert done.exit_code == 0, done.output
    assert load_params(file) == composed(*words)
    failed = CliRunner().invoke(app, ["params", *words, "policy.kl=-1", "-o", str(tmp_path / "no.yaml")])
    assert isinstance(failed.exception, RairlError) and not (tmp_path / "no.yaml").exists()
