"""What a reviewer's labels add to the reward, on finished runs of the built-in benchmark.

    python scripts/label_gain.py runs/one runs/two --params params.yaml --labels 100 --labels 400

The reviewer is the benchmark's exact checker: it marks the first wrong step, or that there is none, on one solution of
the SFT policy for each of the first problems of ``prompts``. R-AIRL is trained again with these labels, as the split
that ``dataset.labels`` makes, and both rewards score the same solutions of the SFT policy to the test problems.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from pathlib import Path

import numpy as np

from rairl.core.params import Params, load_params
from rairl.core.stats import hierarchical_bootstrap
from rairl.core.traces import Trace, read_traces, write_traces
from rairl.evaluate.best_of_n import best_of_n
from rairl.evaluate.candidates import by_question
from rairl.learn.rollouts import sample, to_traces
from rairl.models.calibration import competing, first_error
from rairl.models.policy import load_policy
from rairl.models.reward import RewardModel
from rairl.stages.rairl import rairl
from rairl.tracking.run import Run

FIGURES = ("best of all", "AUROC within question", "first wrong step")


def reviewed(run: Path, count: int, params: Params) -> list[Trace]:
    """One labelled solution of the SFT policy per problem."""
    problems = read_traces(run / "data" / "prompts.jsonl")[:count]
    model, tokenizer = load_policy(run / "models" / "sft")
    seed = random.Random(f"{params.seed}/reviewed").getrandbits(31)
    drawn = sample(
        model, tokenizer, [problem.problem for problem in problems], n=1, temperature=params.policy.temperature,
        max_new_tokens=params.policy.max_new_tokens, seed=seed,
    )  # fmt: skip
    traces = to_traces(drawn, problems, tokenizer, source="sft", tag="reviewed-")
    return [trace for trace in traces if trace.labelled and trace.steps]


def train(run: Path, labels: int, params: Params, out: Path) -> Path:
    """The reward's folder after the stage ``rairl`` with so many labels; one that is there already is kept."""
    reward = out / "reward"
    if not reward.exists():
        shutil.copytree(run / "data", out / "data", dirs_exist_ok=True)
        traces = reviewed(run, labels, params)
        write_traces(out / "data" / "labels_train.jsonl", traces)
        print(
            f"{out}: {sum(trace.first_error is not None for trace in traces)} of {len(traces)} labelled ones are wrong"
        )
        models = {name: run / "models" / name for name in ("base", "sft", "second_model")}
        places = {name: out / name for name in ("policy", "checkpoints", "rollouts", "history")}
        rairl(params, Run(), data=out / "data", **models, reward=out / "draft", **places)
        (out / "draft").rename(reward)
    return reward


def measure(run: Path, reward: Path) -> np.ndarray:
    """``(questions, figures, 2)``: numerator and denominator of each of :data:`FIGURES`."""
    model = RewardModel.from_pretrained(reward)
    traces = read_traces(run / "candidates" / "sft.test.jsonl")
    reads = list(model.step_logits(traces, progress=True))
    rows = []
    for members in by_question(traces).values():
        scores = [competing(model.calibration.trace_score(reads[at]), reads[at].steps) for at in members]
        right = [bool(traces[at].correct) for at in members]
        above = [np.sign(a - b) for a, good in zip(scores, right, strict=True) if good
                 for b, other in zip(scores, right, strict=True) if not other]  # fmt: skip
        found = [first_error(reads[at].steps, model.calibration.locator) == traces[at].first_error
                 for at in members if traces[at].steps and traces[at].first_error is not None]  # fmt: skip
        rows.append(
            [
                [best_of_n(scores, right, len(scores)), 1.0],
                [sum((1 + sign) / 2 for sign in above), len(above)],
                [sum(found), len(found)],
            ]
        )
    return np.array(rows, dtype=float)


def show(tables: dict[int, list[np.ndarray]]) -> None:
    """Print each figure, and each difference from the run's own reward, with intervals over runs and questions."""
    for at, name in enumerate(FIGURES):
        for labels, runs in tables.items():
            plain = hierarchical_bootstrap(runs, lambda means, at=at: means[..., at])
            both = [np.concatenate(pair, axis=1) for pair in zip(runs, tables[0], strict=True)]
            gain = hierarchical_bootstrap(both, lambda means, at=at: means[..., at] - means[..., at + len(FIGURES)])
            each = ", ".join(f"{values[:, at, 0].sum() / values[:, at, 1].sum():.3f}" for values in runs)
            print(
                f"{name}, {labels} labels: {plain.value:.3f} [{plain.low:.3f}, {plain.high:.3f}] ({each}); gain "
                f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
            )


def main() -> None:
    """One line per figure and number of labels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="theirs; the seed is the data card's")
    parser.add_argument("--labels", type=int, action="append", required=True, help="so many labels; may be repeated")
    parser.add_argument("--output", type=Path, default=Path("runs/label_gain"), help="folder of what is trained")
    args = parser.parse_args()
    tables: dict[int, list[np.ndarray]] = {}
    for run in args.runs:
        seed = json.loads((run / "data" / "card.json").read_text(encoding="utf-8"))["seed"]
        params = load_params(args.params).model_copy(update={"seed": seed})
        for labels in (0, *args.labels):
            out = args.output / run.name / str(labels)
            reward = train(run, labels, params, out) if labels else run / "models" / "reward"
            tables.setdefault(labels, []).append(measure(run, reward))
    show(tables)


if __name__ == "__main__":
    main()
