"""The sample stage: candidates of every policy on the held-out problems, one file that every method then scores."""

from __future__ import annotations

import random
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.core.processes import KILLED, idle_jobs, pool
from rairl.core.stats import Estimate, exact
from rairl.core.traces import Trace, read_traces, write_traces
from rairl.evaluate.candidates import TRANSFERRED, candidates_path, first_questions, temperature_label
from rairl.evaluate.likelihood import likelihoods, write_likelihoods

if TYPE_CHECKING:
    from rairl.tracking.run import Run

SOURCES = {
    "base": "base",
    "sft": "sft",
    "sft_last": "sft_last",
    "second_model": "second_model",
    "grpo": "grpo",
    "rairl": "policy",
}
"""Policy to the input of the stage that holds it."""
RANKED = {"sft": None, "rairl": ("test",), "grpo": ("test",)}
"""Policies whose candidates are ranked, and on which splits (None: all); these get likelihoods."""


def sample(
    params: Params,
    run: Run,
    *,
    data: Path,
    base: Path,
    sft: Path,
    sft_last: Path,
    grpo: Path,
    policy: Path,
    second_model: Path,
    candidates: Path,
) -> dict[str, Estimate]:
    """Write ``candidates/<policy>.<split>.jsonl`` (n samples a problem; extra_n on an out-of-distribution split where
    nothing is ranked), ``<policy>.test.greedy.jsonl`` and, for every temperature but the first,
    ``<policy>.test.t<temperature>.jsonl`` (extra_n samples a problem).

    What is ranked later (the SFT policy's samples, R-AIRL's on test, and GRPO's on its first questions) gets
    ``<policy>.<split>.likelihood.json``: its likelihood under the SFT, the base and the second model. Logged
    traces are not sampled; they get that file, and log-probabilities.

    Args:
        params: ``sample`` acts here.
        run: where the numbers of candidates go.
        data: the prepared splits.
        base, sft, sft_last, grpo, policy: folders of the five policies.
        second_model: its folder; its own answers show what the policy could have had from it. Empty without one.
        candidates: folder to write.

    Returns:
        ``sample.<policy>.candidates`` for each policy.
    """
    inputs = {
        "base": base,
        "sft": sft,
        "sft_last": sft_last,
        "second_model": second_model,
        "grpo": grpo,
        "policy": policy,
    }
    models = {name: inputs[source] for name, source in sources(params).items()}
    shared = {"data": data, "base": base, "sft": sft, "second_model": second_model, "candidates": candidates}
    counts = _draw_all(params, models, shared)
    return {f"sample.{name}.candidates": exact(counts[name]) for name in models}


def _draw_all(params: Params, models: dict[str, Path], shared: dict[str, Path]) -> dict[str, int]:
    """Samples of every policy: side by side where cores are idle. What is drawn does not depend on it."""
    jobs = min(idle_jobs(), len(models))
    if jobs == 1:
        return {name: draw(params, name, model=model, **shared) for name, model in models.items()}
    from tqdm import tqdm

    with pool(jobs) as workers:
        # The ranked ones first: they take longest, and a long task that starts last leaves the other cores idle.
        longest_first = sorted(models, key=lambda name: name not in RANKED)
        drawn = {workers.submit(draw, params, name, model=models[name], **shared): name for name in longest_first}
        bar = tqdm(as_completed(drawn), total=len(drawn), desc="sample", unit="policy")
        try:
            return {drawn[done]: done.result() for done in bar}
        except BrokenProcessPool as error:
            raise RairlError(f"{KILLED} ({jobs}); a higher OMP_NUM_THREADS starts fewer") from error


def sources(params: Params) -> dict[str, str]:
    """Whose candidates the stage writes, and the input that holds the model they need."""
    if params.logged:
        return {"logged": "sft"}
    return {policy: source for policy, source in SOURCES.items() if policy != "second_model" or params.second_model}


def draw(
    params: Params, name: str, *, data: Path, model: Path, base: Path, sft: Path, second_model: Path, candidates: Path
) -> int:
    """Write the files of one policy (see :func:`sample`), or of ``logged``; returns the number of samples.

    Args:
        params: ``sample`` acts here.
        name: of the policy.
        data: the prepared splits.
        model: the policy's folder.
        base, sft, second_model: folders of the models that say how likely a trace is.
        candidates: folder to write.
    """
    candidates.mkdir(parents=True, exist_ok=True)
    if name == "logged":
        return _annotate(data / "logged_test.jsonl", base, sft, second_model, candidates)
    splits = {path.stem: read_traces(path) for path in (data / "test.jsonl", *sorted(data.glob("ood_*.jsonl")))}
    written = _sample(params, name, model, splits, candidates)
    if name in RANKED:
        for split in RANKED[name] or splits:
            ranked = first_questions(written[split], TRANSFERRED) if name == "grpo" else written[split]
            pairs = likelihoods(ranked, sft=sft, base=base, second_model=second_model)
            write_likelihoods(candidates, name, split, ranked, pairs)
    return sum(map(len, written.values()))


def samples(params: Params, name: str, split: str) -> int:
    """Samples per problem at the headline temperature: what ranking needs, or fewer where only pass@1 is measured."""
    ranked = name in RANKED and split in (RANKED[name] or (split,))
    return params.sample.n if split == "test" or ranked else params.sample.extra_n


def _sample(
    params: Params, name: str, model: Path, splits: dict[str, list[Trace]], target: Path
) -> dict[str, list[Trace]]:
    from tqdm import tqdm

    from rairl.learn.rollouts import sample as draw_completions
    from rairl.learn.rollouts import to_traces
    from rairl.models.policy import load_policy

    network, tokenizer = load_policy(model)

    def complete(split: str, how: str, n: int, temperature: float) -> list[Trace]:
        prompts = splits[split]
        # One seed for all policies: common random numbers make their comparison sharper.
        seed = random.Random("/".join(filter(None, (str(params.seed), "sample", split, how)))).getrandbits(31)
        done = draw_completions(
            network,
            tokenizer,
            [prompt.problem for prompt in prompts],
            n=n,
            max_new_tokens=params.policy.max_new_tokens,
            temperature=temperature,
            seed=seed,
        )
        traces = to_traces(done, prompts, tokenizer, source=f"policy:{name}")
        write_traces(candidates_path(target, name, split, how), traces)
        return traces

    headline, *others = params.sample.temperatures
    bar = tqdm(splits, desc=f"sample {name}", unit="split")
    written = {split: complete(split, "", samples(params, name, split), headline) for split in bar}
    for temperature in others:
        complete("test", temperature_label(temperature), params.sample.extra_n, temperature)
    complete("test", "greedy", 1, 0.0)
    return written


def _annotate(logged: Path, base: Path, sft: Path, second_model: Path, target: Path) -> int:
    traces = read_traces(logged)
    pairs = likelihoods(traces, sft=sft, base=base, second_model=second_model)
    annotated = [
        replace(trace, meta={**trace.meta, "logprob": pair.sft.total, "tokens": pair.sft.tokens})
        for trace, pair in zip(traces, pairs, strict=True)
    ]
    write_traces(candidates_path(target, "logged", "test"), annotated)
    write_likelihoods(target, "logged", "test", annotated, pairs)
    return len(traces)
