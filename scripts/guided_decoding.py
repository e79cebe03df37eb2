"""Guided decoding against best-of-N at an equal number of sampled tokens, on finished runs of the built-in benchmark.

    python scripts/guided_decoding.py runs/one runs/two --policy base --policy sft

Both use the run's reward and sample from the same policy at the same temperature. Best-of-N chooses once, among N whole
solutions: its accuracy is the expectation over all N of the candidates that the stage ``sample`` drew. Guided decoding
(:func:`guided_decode`) chooses at every line, among N continuations, which samples about as many tokens: both
numbers are printed, and best-of-(N + 1) beside them. Nothing is chosen here: the test problems are the first ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rairl.core.stats import hierarchical_bootstrap
from rairl.core.traces import Trace, read_traces, relabel
from rairl.evaluate.best_of_n import best_of_n
from rairl.evaluate.candidates import by_question
from rairl.learn.rollouts import judge
from rairl.models.calibration import competing
from rairl.models.policy import load_policy
from rairl.models.reading import encode_prompts, end_tokens
from rairl.models.reward import RewardModel
from rairl.text.answers import read_answer
from rairl.text.segment import solved

FOLDERS = {"base": "base", "sft": "sft", "rairl": "policy", "grpo": "grpo"}


def guided_decode(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reward: RewardModel,
    problem: str,
    *,
    k: int,
    max_steps: int,
    max_step_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> Trace:
    """Solve a problem step by step: sample ``k`` continuations up to the next line break, keep the best by reward.

    It samples as many tokens as best-of-k does, but chooses at every step instead of once among whole solutions.

    Args:
        policy: any causal model of transformers.
        tokenizer: the policy's; the reward reads text and has its own.
        reward: scores the solution so far, by the aggregator that was chosen on dev.
        max_steps: lines at most.
        max_step_tokens: tokens of a line at most; a longer one goes on in the next round.
        seed: equal arguments give equal solutions.

    Returns:
        The solution, with ``meta``: ``tokens`` sampled in all, and whether it is ``finished``.
    """
    [prompt] = encode_prompts(tokenizer, [problem])
    ends = end_tokens(policy, tokenizer)
    chosen: list[int] = []
    sampled, finished = 0, False
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(max_steps):
            ids = torch.tensor([prompt + chosen], device=policy.device)
            rows = policy.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                num_return_sequences=k,
                max_new_tokens=max_step_tokens,
                stop_strings=["\n"],
                tokenizer=tokenizer,
                eos_token_id=ends,
                pad_token_id=tokenizer.pad_token_id,
            )[:, ids.shape[1] :].tolist()
            steps = [_until_end(row, tokenizer, ends) for row in rows]
            sampled += sum(len(step) + ended for step, ended in steps)
            texts = [tokenizer.decode(chosen + step, skip_special_tokens=False) for step, _ in steps]
            traces = [solution(problem, text) for text in texts]
            scores = [result.score for result in reward.score_traces(traces)]
            rated = [competing(score, trace.steps) for score, trace in zip(scores, traces, strict=True)]
            # A blank line says nothing: without this, one of them after the other would be the safest to go on with.
            said = [ended or bool(tokenizer.decode(step).strip()) for step, ended in steps]
            step, finished = steps[max(range(k), key=lambda at: (said[at], rated[at], scores[at]))]
            chosen = chosen + step
            if finished:
                break
    trace = solution(problem, tokenizer.decode(chosen, skip_special_tokens=False))
    return replace(trace, answer=read_answer(trace.text, trace.problem), meta={"tokens": sampled, "finished": finished})


def solution(problem: str, text: str) -> Trace:
    """What was written so far, with the steps that it shows; nothing is a blank line."""
    return solved("0", problem, text or "\n", source="policy")


def _until_end(row: list[int], tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> tuple[list[int], bool]:
    """A generated row without its end token and padding (the same token in many models), and whether it has ended."""
    stops = {*ends, tokenizer.pad_token_id}
    end = next((at for at, token in enumerate(row) if token in stops), len(row))
    line = "\n" in tokenizer.decode(row[:end], skip_special_tokens=False)
    return row[:end], end < len(row) and row[end] in ends and not line


def measure(run: Path, policy: str, problems: int, n: int, lines: int, line_tokens: int) -> list[dict[str, float]]:
    """One row per problem: accuracy and sampled tokens of each way to solve it."""
    reward = RewardModel.from_pretrained(run / "models" / "reward")
    candidates = read_traces(run / "candidates" / f"{policy}.test.jsonl")
    groups = list(by_question(candidates).items())[:problems]
    gold = {trace.problem: trace.gold for trace in candidates}
    model, tokenizer = load_policy(run / "models" / FOLDERS[policy])
    rows = []
    for number, (_, members) in enumerate(tqdm(groups, desc=f"{run.name} {policy}", unit="problem")):
        traces = [candidates[at] for at in members]
        reads = reward.step_logits(traces)
        scores = [competing(reward.calibration.trace_score(read), read.steps) for read in reads]
        right = [bool(trace.correct) for trace in traces]
        problem = traces[0].problem
        found = guided_decode(
            model, tokenizer, reward, problem, k=n, max_steps=lines, max_step_tokens=line_tokens, seed=number
        )
        judged = judge(relabel(found, gold=gold[problem], answer=found.answer if found.meta["finished"] else None))
        tokens = float(np.mean([trace.meta["tokens"] for trace in traces]))
        rows.append(
            {
                "one sample": float(np.mean(right)),
                f"best of {n}": best_of_n(scores, right, n),
                f"best of {n + 1}": best_of_n(scores, right, n + 1),
                f"oracle of {n}": best_of_n([float(value) for value in right], right, n),
                "guided": float(bool(judged.correct)),
                "tokens, one sample": tokens,
                f"tokens, best of {n}": n * tokens,
                "tokens, guided": float(found.meta["tokens"]),
            }
        )
    return rows


def show(policy: str, by_run: dict[str, list[dict[str, float]]], n: int) -> None:
    """Print means over runs with intervals over runs and problems, each run's own value, and paired differences."""
    names = list(next(iter(by_run.values()))[0])
    tables = [np.array([[row[name] for name in names] for row in rows]) for rows in by_run.values()]
    print(f"\n{policy}: {len(tables)} runs, {len(tables[0])} problems each; by run: {', '.join(by_run)}")
    for at, name in enumerate(names):
        print(f"  {name}: {_line([values[:, at] for values in tables], '.3f')}")
    guided = names.index("guided")
    for other in ("one sample", f"best of {n}", f"best of {n + 1}"):
        at = names.index(other)
        print(f"  guided minus {other}: {_line([values[:, guided] - values[:, at] for values in tables], '+.3f')}")
    sys.stdout.flush()


def _line(columns: list[np.ndarray], form: str) -> str:
    """The mean of one figure, from its values per problem of each run."""
    pairs = [np.stack([values, np.ones_like(values)], axis=-1)[:, None] for values in columns]
    found = hierarchical_bootstrap(pairs, lambda means: means[..., 0])
    each = ", ".join(f"{values.mean():{form}}" for values in columns)
    return f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]  ({each})"


def main() -> None:
    """One table per policy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--policy", action="append", choices=FOLDERS, required=True)
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--lines", type=int, default=16, help="rounds at most")
    parser.add_argument("--line-tokens", type=int, default=32, help="tokens of a round at most")
    parser.add_argument("--output", type=Path, help="write the rows behind the tables here, as JSON")
    args = parser.parse_args()
    kept = {}
    for policy in args.policy:
        kept[policy] = {
            run.name: measure(run, policy, args.problems, args.n, args.lines, args.line_tokens) for run in args.runs
        }
        show(policy, kept[policy], args.n)
        if args.output is not None:
            args.output.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
