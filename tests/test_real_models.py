"""A published cell, from its presets, on tiny models of the published architectures: every stage, every code path.

The models have random weights and say nothing sensible, so no figure means anything; shapes, templates, tokens and
files are those of the real ones.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import yaml
from conftest import spied_rates
from test_system_message import CHATML, LLAMA

from rairl.core.params import Params, parse_params
from rairl.core.traces import read_traces
from rairl.models.policy import load_policy
from rairl.models.reading import render_prompt
from rairl.models.reward import RewardModel
from rairl.preflight import presets
from rairl.stages.runner import run_stage

ARCHITECTURES = {
    "qwen2": (CHATML, "<|im_start|>", "<|im_end|>", {}),
    "qwen3": (CHATML, "<|im_start|>", "<|im_end|>", {"head_dim": 16}),
    "llama": (LLAMA, "<|start|>", "<|eot|>", {}),
}
"""Chat template, its marks, and what the configuration has beside the sizes."""
TEXT = (
    "Tom buys 3 boxes of 12 eggs each. How many eggs are there? <think>\n3 * 12 = 36\n</think>\n<answer>\n36\n</answer>"
)


def chat_model(folder: Path, kind: str, vocabulary: int = 400) -> Path:
    """A folder as the hub has it: configuration, safetensors in bfloat16, tokenizer, chat template in a file."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    template, start, end, extra = ARCHITECTURES[kind]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", start, end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT, json.dumps(gsm8k(40))], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token="<|endoftext|>")
    fast.chat_template = template
    torch.manual_seed(len(kind) + vocabulary)
    config = AutoConfig.for_model(
        kind, vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=kind != "llama",
        eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id, bos_token_id=None, **extra,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    fast.save_pretrained(folder)
    assert (folder / "chat_template.jinja").read_text() == template
    return folder


def gsm8k(count: int) -> list[dict[str, str]]:
    rows = []
    for number in range(count):
        rng = random.Random(number)
        boxes, eggs, given = 2 + number, rng.randint(3, 12), rng.randint(1, 5)
        total = boxes * eggs
        rows.append(
            {
                "question": f"Tom buys {boxes} boxes of {eggs} eggs each and gives {given} away. How many are left?",
                "answer": f"He buys {boxes} * {eggs} = <<{boxes}*{eggs}={total}>>{total} eggs.\n"
                f"Then {total} - {given} = <<{total}-{given}={total - given}>>{total - given} are left.\n"
                f"#### {total - given}",
            }
        )
    return rows


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def gsm8k_words(folder: Path) -> list[str]:
    rows = gsm8k(24)
    demos, test = write(folder / "train.jsonl", rows[:18]), write(folder / "test.jsonl", rows[18:])  # type: ignore[arg-type]
    return ["dataset=gsm8k", f"dataset.demos={demos}", f"dataset.test={test}", "dataset.dev=4"]


def mmlu_words(folder: Path) -> list[str]:
    words = ["Measles", "Mumps", "Rubella", "Scurvy"]
    rows = [
        {"question_id": number, "question": f"What causes sign {number}?", "options": words, "category": "health",
         "answer": "ABCD"[number % 4]}
        for number in range(24)
    ]  # fmt: skip
    told = [
        {
            "question_id": number,
            "rationale": f"Sign {number} is seen in children.\nIt is a sign of {words[number % 4].lower()}.\n"
            f"{words[number % 4]} causes sign {number}.\nThe answer is ({'ABCD'[number % 4]}).",
        }
        for number in range(24)
    ]
    questions, rationales = write(folder / "q.jsonl", rows), write(folder / "r.jsonl", told)
    return [
        "dataset=mmlu_pro", f"dataset.questions={questions}", f"dataset.rationales={rationales}", "dataset.dev=4",
        "dataset.test=6",
    ]  # fmt: skip


DATASETS = {"gsm8k": gsm8k_words, "mmlu_pro": mmlu_words}
SMALL = """
    seed=0 sft.epochs=1 sft.batch_size=8 sft.lora_rank=4 policy.lora_rank=4 reward.lora_rank=4 policy.iterations=2
    policy.warmup_iterations=1 policy.prompts_per_iteration=2 policy.group_size=2 policy.max_new_tokens=24
    policy.gradient_checkpointing=true policy.learning_rate=1e-3 reward.learning_rate=1e-3 reward.learning_rate_warmup=0
    reward.warmup_updates=2 reward.updates_per_iteration=1 reward.demos_per_update=4 reward.replay_size=40
    reward.register_every=2 policy.optimizer=adamw reward.optimizer=adamw sample.n=2 sample.extra_n=1
    rerank.n=2 report.bootstrap=100
""".split()


def cell(folder: Path, kind: str, dataset: str, *more: str, method: str = "interval") -> Params:
    """A published cell on a tiny model of the architecture."""
    model = chat_model(folder / "model", kind)
    words = [*DATASETS[dataset](folder), "model=qwen3-4b", f"method={method}", f"base.source={model}", *SMALL, *more]
    return parse_params(presets.compose(words))


def checked(folder: Path, params: Params) -> None:
    """What a run has left behind of policy and reward."""
    policy, tokenizer = load_policy(folder / "models/policy")
    assert policy.dtype == load_policy(folder / "models/base")[0].dtype and not hasattr(policy, "peft_config")
    prompt = render_prompt(tokenizer, "1 + 1?")
    assert params.system is not None and params.system in prompt
    reward = RewardModel.from_pretrained(folder / "models/reward")
    experts = read_traces(folder / "data/dev.jsonl")
    scores = reward.step_logits(experts)
    assert all(len(one.steps) == len(trace.steps) for one, trace in zip(scores, experts, strict=True))
    rollouts = read_traces(folder / "rollouts/iteration-00000.jsonl")
    assert {trace.source for trace in rollouts} == {"policy"} and all("<|" not in trace.problem for trace in rollouts)


def test_training_with_a_reward_of_another_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages that train, on a Qwen3 with a Llama as the reward's body: another template, other tokens."""
    monkeypatch.setenv("RAIRL_CHECKPOINTS", str(tmp_path / "work"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    other = chat_model(tmp_path / "other", "llama", 330)
    params = cell(tmp_path, "qwen3", "gsm8k", f"reward.backbone={other}", "reward.credit=return", "reward.discount=0.9")
    for stage in ("prepare", "base", "sft", "second_model"):
        run_stage(stage, params, root=tmp_path)
    rates = spied_rates(monkeypatch)
    run_stage("rairl", params, root=tmp_path)
    checked(tmp_path, params)
    # The preset's cosines, over 2 iterations (the first of them warm-up) and over the reward's 2 + 2 updates.
    fractions = {"Qwen3ForCausalLM": [0, 1 / 2], "RewardModel": [1 / 5, 2 / 5, 3 / 5, 4 / 5]}
    assert rates == {
        name: pytest.approx([1e-3 * 0.5 * (1 + math.cos(math.pi * part)) for part in parts])
        for name, parts in fractions.items()
    }
    reward = RewardModel.from_pretrained(tmp_path / "models/reward")
    assert len(reward.tokenizer) < len(load_policy(tmp_path / "models/policy")[1])
    assert "Today Date: 26 Jul 2024" in render_prompt(reward.tokenizer, "1 + 1?")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("kind", "dataset", "method", "more"),
    [
        ("qwen2", "gsm8k", "sparse", []),
        ("qwen3", "mmlu_pro", "interval", ["reward.backbone=base"]),
        ("llama", "gsm8k", "dense", ["policy.start=sft", "reward.backbone=sft"]),
        ("llama", "mmlu_pro", "step", ["reward.backbone=OTHER"]),
        ("qwen3", "gsm8k", "v1", ["reward.backbone=OTHER"]),
    ],
)
def test_a_published_cell_runs_through_every_stage(
    kind: str,
    dataset: str,
    method: str,
    more: list[str],
    tmp_path: Path,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from typer.testing import CliRunner

    from rairl.cli.main import app

    monkeypatch.setenv("RAIRL_CHECKPOINTS", str(tmp_path / "work"))
    other = chat_model(tmp_path / "other", "qwen2", 340)
    params = cell(tmp_path, kind, dataset, *(word.replace("OTHER", str(other)) for word in more), method=method)
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(params.model_dump()))
    done = CliRunner().invoke(app, ["run", "--params", str(file), "--dir", str(project)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    checked(project, params)
    figures = json.loads((project / "metrics.json").read_text())
    for policy in ("base", "sft", "grpo", "rairl"):
        assert f"posttrain.{policy}.pass@1" in figures
    assert (project / "report" / "report.html").stat().st_size > 10_000
