"""The rows of the table. Each takes the material, the number of runs and the machine, and returns lines."""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.floors import Machine, attention_flops, matmul_flops, rollout_work
from benchmarks.material import Material
from benchmarks.paired import Row, Times, in_turn, row
from rairl.core.traces import Trace, read_traces, write_traces
from rairl.core.training_params import BuiltinBase
from rairl.learn.rollouts import sample
from rairl.models.policy import load_policy, make_trainable
from rairl.models.reading import SharedPrompts, encode, render_prompt
from rairl.models.reward import RewardModel, new_reward, reward_on

# --- rollouts --------------------------------------------------------------------------------------------------------


def rollouts(m: Material, runs: int, machine: Machine, shapes: tuple[tuple[int, int], ...] = ()) -> list[Row]:
    """Tokens per second of sampling, against generate() at the same temperature over the whole vocabulary.

    Args:
        shapes: prompts and samples per prompt; without them those of training and of the stage `sample`.
    """
    policy = m.params.policy
    n = m.params.sample.n
    shapes = shapes or ((policy.prompts_per_iteration, policy.group_size), (512 // n, n))
    lines = []
    for prompts, n in shapes:
        problems = [trace.problem for trace in m.prompts[:prompts]]
        drawn = sample(m.policy, m.tokenizer, problems, **_sampling(m, n, seed=0))
        work = rollout_work(
            m.policy.config, [len(item.prompt_ids) for item in drawn[::n]], [len(item.ids) for item in drawn]
        )
        tokens = sum(len(item.ids) for item in drawn)
        peers: dict[str, Callable[[], float]] = {
            "generate, dynamic cache": lambda problems=problems, n=n: generate(m, problems, n),
            "generate, static cache": lambda problems=problems, n=n: generate(
                m, problems, n, cache_implementation="static", disable_compile=True
            ),
        }
        times = in_turn({"ours": _drawing(m, problems, n), **peers}, runs)
        what = f"rollouts, {len(problems)} prompts x {n} samples"
        floor = machine.floor(*work) / tokens
        lines += [row(what, name, times["ours"], times[name], 2.0, "token", floor) for name in peers]
    return lines


def _sampling(m: Material, n: int, seed: int) -> dict[str, Any]:
    cap, temperature = m.params.policy.max_new_tokens, m.params.policy.temperature
    return {"n": n, "max_new_tokens": cap, "temperature": temperature, "seed": seed}


def _drawing(m: Material, problems: list[str], n: int) -> Callable[[], float]:
    """Our way to draw them, by new random numbers each time; it returns the number of tokens drawn."""
    seeds = itertools.count()

    def ours() -> float:
        items = sample(m.policy, m.tokenizer, problems, **_sampling(m, n, seed=next(seeds)))
        return sum(len(item.ids) for item in items)

    return ours


@torch.inference_mode()
def generate(m: Material, problems: list[str], n: int, **options: Any) -> float:
    """What transformers makes of the same prompts and settings; returns the number of tokens drawn."""
    texts = [render_prompt(m.tokenizer, problem) for problem in problems]
    batch = m.tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    ids = batch["input_ids"]
    out = m.policy.generate(
        input_ids=ids,
        attention_mask=batch["attention_mask"],
        do_sample=True,
        temperature=m.params.policy.temperature,
        top_k=0,
        top_p=1.0,
        num_return_sequences=n,
        max_new_tokens=m.params.policy.max_new_tokens,
        pad_token_id=m.tokenizer.pad_token_id,
        **options,
    )
    return int((out[:, ids.shape[1] :] != m.tokenizer.pad_token_id).sum())


def continuous(m: Material, runs: int, machine: Machine, prompts: int = 8, n: int = 8) -> list[Row]:
    """The same against continuous batching, on few prompts: on a processor it is slow."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    problems = [trace.problem for trace in m.prompts[:prompts]]
    inputs = [
        ids
        for problem in problems
        for ids in [m.tokenizer(render_prompt(m.tokenizer, problem), add_special_tokens=False)["input_ids"]] * n
    ]
    settings = GenerationConfig(
        do_sample=True,
        temperature=m.params.policy.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=m.params.policy.max_new_tokens,
        eos_token_id=m.tokenizer.eos_token_id,
        pad_token_id=m.tokenizer.pad_token_id,
    )
    # All requests in one batch, and no more room than they need: by default it takes what the memory holds.
    room = ContinuousBatchingConfig(
        page_size=16, num_blocks=2048, max_batch_tokens=1024, max_requests_per_batch=len(inputs)
    )

    def peer() -> float:
        kept = m.policy.config._attn_implementation
        # Not in inference mode, which is of this thread alone: the batches are made in another one.
        found = m.policy.generate_batch(
            inputs, generation_config=settings, continuous_batching_config=room, progress_bar=False
        )
        m.policy.set_attn_implementation(kept)
        return sum(len(one.generated_tokens) for one in found.values())

    times = in_turn({"ours": _drawing(m, problems, n), "peer": peer}, runs)
    what = f"rollouts, {len(problems)} prompts x {n} samples"
    return [row(what, "generate_batch (continuous batching)", times["ours"], times["peer"], 2.0, "token")]


# --- one iteration ---------------------------------------------------------------------------------------------------


def iteration(m: Material, runs: int, machine: Machine) -> list[Row]:
    """One iteration of the loop against a step of TRL's GRPOTrainer, with and without the discriminator's update.

    The learning rates are next to nothing, so that both stay on the same weights and draw as many tokens.
    """
    import trl
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, TrainerCallback

    policy = m.params.policy.model_copy(update={"learning_rate": 1e-12})
    prompts = m.prompts[: policy.prompts_per_iteration]
    ours, scored, peer = Times(), Times(), Times()
    with tempfile.TemporaryDirectory() as scratch:
        whole = _loop(m, prompts, Path(scratch) / "with")
        without = _loop(m, prompts, Path(scratch) / "without")
        without.reward.learn = lambda iteration, rollout: {}  # type: ignore[method-assign]
        begun: list[tuple[float, float]] = []

        class Beside(TrainerCallback):
            """Times each step of TRL, and ours right after it."""

            def on_step_begin(self, *_: Any, **__: Any) -> None:
                begun.append((time.perf_counter(), time.process_time()))

            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock, processor = begun[-1]
                peer.add(time.perf_counter() - clock, time.process_time() - processor)
                for loop, times in ((without, scored), (whole, ours)):
                    times.timed(lambda loop=loop: bool(loop.iterate()))
                    loop.done += 1

        judge = AutoModelForSequenceClassification.from_pretrained(
            str(m.root / "models" / "second_model"), num_labels=1
        )
        config = trl.GRPOConfig(
            output_dir=scratch,
            max_steps=runs + 1,
            per_device_train_batch_size=len(prompts) * policy.group_size,
            num_generations=policy.group_size,
            max_completion_length=policy.max_new_tokens,
            temperature=policy.temperature,
            beta=policy.kl,
            learning_rate=1e-12,
            lr_scheduler_type="constant",
            gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            report_to=[],
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = trl.GRPOTrainer(
            model=load_policy(str(m.root / "models" / "sft"))[0],
            reward_funcs=judge,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": [render_prompt(m.tokenizer, one.problem) for one in prompts]}),
            processing_class=m.tokenizer,
            callbacks=[Beside()],
        )
        trainer.train()
    for times in (ours, scored, peer):  # the first run warms up
        del times.clock[0], times.processor[0]
    name = "TRL GRPOTrainer step, reward model of the same size"
    what = f"iteration, {len(prompts)} prompts x {policy.group_size}"
    return [
        row(f"{what}, without discriminator update", name, scored, peer, 2.0, "iteration"),
        row(f"{what}, with it", name, ours, peer, 1.0, "iteration"),
    ]


def _loop(m: Material, prompts: list[Trace], folder: Path) -> Any:
    """The loop of the stage `rairl` on the finished models, its replay buffer filled."""
    from rairl.learn.learned_reward import LearnedReward
    from rairl.learn.policy_loop import PolicyLoop

    params = m.params.policy.model_copy(update={"learning_rate": 1e-12})
    policy, tokenizer = load_policy(m.root / "models" / "sft")
    reference = make_trainable(policy, params, seed=0)
    rewards = m.params.reward.model_copy(update={"learning_rate": 1e-12})
    reward = LearnedReward(
        RewardModel.from_pretrained(m.root / "models" / "reward"),
        m.demos,
        rewards,
        params.advantage_floor,
        0,
    )
    reward.replay.add(m.candidates[: rewards.replay_size])
    return PolicyLoop(
        policy=policy,
        reference=reference,
        tokenizer=tokenizer,
        prompts=prompts,
        reward=reward,
        params=params,
        seed=0,
        checkpoints=folder,
        rollouts=None,
        on_metrics=lambda iteration, metrics: None,
    )


# --- scoring ---------------------------------------------------------------------------------------------------------


def read_whole(rows: SharedPrompts, model: Any, **options: Any) -> Any:
    """What :meth:`SharedPrompts.read` says of rows with one prompt, by a forward pass over each full sequence."""
    out = model(input_ids=torch.cat([rows.heads[rows.owner], rows.tails], -1), use_cache=False, **options)
    width = rows.tails.shape[1]
    for name, value in out.items():
        out[name] = tuple(part[:, -width:] for part in value) if isinstance(value, tuple) else value[:, -width:]
    return out


def candidates_of_one(m: Material, runs: int, machine: Machine, prompt: int = 150, n: int = 16) -> list[Row]:
    """Scoring N candidates of one prompt at the lengths of GSM8K, against full sequences; the scores are the same.

    With the benchmark's own body, and with one of a width that language models begin at. A pair of the first takes a
    third of a second, and few of those say little: medians of five went from 1.48 to 1.55 with the same code.
    """
    wide = m.params.base.model_copy(update={"hidden_size": 512, "heads": 8})
    kinds = {"": (m.params.base, 6 * runs), f", width {wide.hidden_size}": (wide, runs)}
    return [_candidates(m, pairs, machine, prompt, n, base, kind) for kind, (base, pairs) in kinds.items()]


def _candidates(m: Material, runs: int, machine: Machine, prompt: int, n: int, base: BuiltinBase, kind: str) -> Row:
    from rairl.models.base import new_model

    model = new_model(base, m.tokenizer, max_tokens=4 * prompt, seed=0).eval()
    reward = reward_on(model, m.tokenizer, m.params.reward, seed=0).eval()
    traces = m.long_traces(prompt, [prompt - n // 2 + at for at in range(n)])

    def plain() -> list[Any]:
        with patch.object(SharedPrompts, "read", read_whole):
            return reward.step_logits(traces)

    for mine, theirs in zip(reward.step_logits(traces), plain(), strict=True):
        np.testing.assert_allclose(mine.steps, theirs.steps, atol=1e-4)
    times = in_turn({"ours": lambda: len(reward.step_logits(traces)), "peer": lambda: len(plain())}, runs)
    items = encode(m.tokenizer, traces)
    head, tails = items[0].prompt_tokens, [len(item.ids) - items[0].prompt_tokens for item in items]
    config = model.config
    seen = head**2 / 2 + sum(tail * head + tail**2 / 2 for tail in tails)
    flops = matmul_flops(config) * sum(tails) + matmul_flops(config, logits=False) * head
    floor = machine.floor(flops + attention_flops(config, seen)) / n
    what = f"scoring {n} candidates of one prompt ({prompt} + {prompt} tokens{kind})"
    return row(what, "forward pass over each full sequence", times["ours"], times["peer"], 1.5, "candidate", floor)


def large_file(m: Material, runs: int, machine: Machine, count: int = 512) -> list[Row]:
    """Scoring a file of traces, from file to file, against a loop over a token-classification pipeline."""
    from transformers import pipeline

    from rairl.use.apply import score_rows

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "reward"
        source, target = Path(scratch) / "traces.jsonl", Path(scratch) / "scores.jsonl"
        linear = m.params.reward.model_copy(update={"head": "linear"})
        new_reward(m.root / "models" / "second_model", linear, seed=0).save_pretrained(folder)
        reward = RewardModel.from_pretrained(folder)
        classify = pipeline("token-classification", model=str(folder), tokenizer=str(folder), device="cpu")
        write_traces(source, m.many(count))

        def ours() -> float:
            with target.open("w") as out:
                for one in score_rows(read_traces(source), reward):
                    out.write(json.dumps(one) + "\n")
            return count

        def peer() -> float:
            with source.open() as lines, target.open("w") as out:
                for line in lines:
                    item = json.loads(line)
                    found = classify(render_prompt(reward.tokenizer, item["problem"]) + item["text"])
                    out.write(json.dumps({"id": item["id"], "steps": [float(one["score"]) for one in found]}) + "\n")
            return count

        times = in_turn({"ours": ours, "peer": peer}, runs)
    name = "loop over a token-classification pipeline"
    return [row(f"scoring a file of {count} traces", name, times["ours"], times["peer"], 5.0, "trace")]


ROWS: dict[str, Callable[[Material, int, Machine], list[Row]]] = {
    "rollouts": rollouts,
    "iteration": iteration,
    "candidates": candidates_of_one,
    "file": large_file,
    "continuous": continuous,
}
"""Rows by the names that the command line takes."""
