"""The sample stage: candidates of every policy on the held-out problems, one file that every method then scores."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rairl.params import Params
from rairl.stats import Estimate, exact
from rairl.traces import Trace, read_traces, write_traces

if TYPE_CHECKING:
    from rairl.tracking import Run


def sample(
    params: Params, run: Run, *, data: Path, base: Path, sft: Path, grpo: Path, policy: Path, candidates: Path
) -> dict[str, Estimate]:
    """Write ``candidates/<policy>.<split>.jsonl`` (n samples a problem) and ``<policy>.test.greedy.jsonl``.

    Logged traces are not sampled: their file gets the log-probabilities of the SFT model beside each trace.

    Args:
        params: ``sample`` acts here.
        run: where the numbers of candidates go.
        data: the prepared splits.
        base, sft, grpo, policy: folders of the four policies.
        candidates: folder to write.

    Returns:
        ``sample.<policy>.candidates`` for each policy.
    """
    candidates.mkdir(parents=True, exist_ok=True)
    if params.logged:
        return {"sample.logged.candidates": exact(_annotate(data / "logged_test.jsonl", sft, candidates))}
    splits = {path.stem: read_traces(path) for path in (data / "test.jsonl", *sorted(data.glob("ood_*.jsonl")))}
    figures = {}
    for name, folder in (("base", base), ("sft", sft), ("grpo", grpo), ("rairl", policy)):
        figures[f"sample.{name}.candidates"] = exact(_draw(params, name, folder, splits, candidates))
    return figures


def _draw(params: Params, name: str, folder: Path, splits: dict[str, list[Trace]], target: Path) -> int:
    from tqdm import tqdm

    from rairl.learn.rollouts import sample as draw
    from rairl.learn.rollouts import to_traces
    from rairl.models.policy import load_policy

    model, tokenizer = load_policy(folder)
    source = f"policy:{name}"
    count = 0

    def complete(prompts: Sequence[Trace], n: int, temperature: float, seed: int) -> list[Trace]:
        problems = [prompt.problem for prompt in prompts]
        limit = params.policy.max_new_tokens
        done = draw(model, tokenizer, problems, n=n, max_new_tokens=limit, temperature=temperature, seed=seed)
        return to_traces(done, prompts, tokenizer, source=source)

    bar = tqdm(splits.items(), desc=f"sample {name}", unit="split")
    for split, prompts in bar:
        # One seed for all policies: common random numbers make their comparison sharper.
        seed = random.Random(f"{params.seed}/sample/{split}").getrandbits(31)
        traces = complete(prompts, params.sample.n, params.sample.temperature, seed)
        write_traces(target / f"{name}.{split}.jsonl", traces)
        count += len(traces)
    write_traces(target / f"{name}.test.greedy.jsonl", complete(splits["test"], 1, 0.0, 0))
    return count


def _annotate(logged: Path, sft: Path, target: Path) -> int:
    from rairl.models.policy import load_policy, step_logprobs

    traces = read_traces(logged)
    model, tokenizer = load_policy(sft)
    likelihoods = step_logprobs(model, tokenizer, traces, progress=True)
    write_traces(
        target / "logged.test.jsonl",
        [
            replace(trace, meta={**trace.meta, "logprob": item.total, "tokens": item.tokens})
            for trace, item in zip(traces, likelihoods, strict=True)
        ],
    )
    return len(traces)
