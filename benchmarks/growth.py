"""Time and memory as a job grows to a hundred times the default: what grows faster than the job is a defect."""

from __future__ import annotations

import gc
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.material import Material
from rairl.core.traces import read_traces, write_traces
from rairl.learn.discriminator_batch import Replay
from rairl.learn.learned_reward import LearnedReward, unique_ids
from rairl.learn.rollouts import sample
from rairl.models.base import new_model
from rairl.models.reward import RewardModel, reward_on

FACTORS = (1, 10, 100)


@dataclass(frozen=True)
class Point:
    """One size of one job.

    Attributes:
        job: what is done.
        factor: times the default.
        size: how many.
        seconds: of processor time.
        memory: bytes by which the process grew at most; None where the system does not say.
    """

    job: str
    factor: int
    size: int
    seconds: float
    memory: int | None


def growth(m: Material, factors: Sequence[int]) -> list[Point]:
    """Candidates of a prompt, length of a trace, demonstrations and replayed rollouts, each at every factor."""
    jobs = {
        "candidates of a prompt: sampled and scored": (m.params.sample.n, _candidates),
        "tokens of a trace: scored": (60, _length),
        "demonstrations: read, and an update of the reward": (len(m.demos), _demonstrations),
        "replayed rollouts: kept, drawn from, saved": (m.params.reward.replay_size, _replay),
    }
    points = []
    for name, (default, prepare) in jobs.items():
        for factor in factors:
            with tempfile.TemporaryDirectory() as scratch:
                job = prepare(m, default * factor, Path(scratch))
                seconds, memory = _spent(job)
            points.append(Point(name, factor, default * factor, seconds, memory))
    return points


def _spent(job: Callable[[], None]) -> tuple[float, int | None]:
    gc.collect()
    before = _memory("VmRSS", forget=True)
    start = time.process_time()
    job()
    seconds = time.process_time() - start
    peak = _memory("VmHWM")
    return seconds, None if before is None or peak is None else max(0, peak - before)


def _memory(key: str, forget: bool = False) -> int | None:
    """Bytes that Linux counts for this process; ``forget`` starts the count of the highest anew."""
    try:
        if forget:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def _candidates(m: Material, count: int, scratch: Path) -> Callable[[], None]:
    from rairl.learn.rollouts import to_traces

    reward = RewardModel.from_pretrained(m.root / "models" / "reward")
    prompt = m.prompts[0]

    def job() -> None:
        cap = m.params.policy.max_new_tokens
        drawn = sample(m.policy, m.tokenizer, [prompt.problem], n=count, max_new_tokens=cap, temperature=1.0, seed=0)
        reward.step_logits([one for one in to_traces(drawn, [prompt], m.tokenizer, source="policy") if one.text])

    return job


def _length(m: Material, tokens: int, scratch: Path) -> Callable[[], None]:
    model = new_model(m.params.base, m.tokenizer, max_tokens=2 * tokens + 200, seed=0).eval()
    reward = reward_on(model, m.tokenizer, m.params.reward, seed=0)
    traces = m.long_traces(50, [tokens])
    return lambda: reward.step_logits(traces) and None


def _demonstrations(m: Material, count: int, scratch: Path) -> Callable[[], None]:
    demos = [m.demos[at % len(m.demos)] for at in range(count)]
    file = scratch / "demos.jsonl"
    write_traces(file, unique_ids(demos))
    model = RewardModel.from_pretrained(m.root / "models" / "reward")
    fresh = m.candidates[:32]

    def job() -> None:
        LearnedReward(model, read_traces(file), m.params.reward, 0.5, 0).update(fresh, "0")

    return job


def _replay(m: Material, count: int, scratch: Path) -> Callable[[], None]:
    traces = m.many(count)

    def job() -> None:
        replay = Replay(count)
        replay.add(traces)
        replay.draw(32, random.Random(0))
        write_traces(scratch / "replay.jsonl", unique_ids(replay.traces))

    return job


def exponents(points: Sequence[Point]) -> dict[str, tuple[float, float | None]]:
    """The power of the size that seconds and memory grow with, between the two largest sizes: 1 is linear."""
    found: dict[str, tuple[float, float | None]] = {}
    for job in dict.fromkeys(point.job for point in points):
        first, last = [point for point in points if point.job == job][-2:]
        step = np.log(last.size / first.size)
        memory = None
        if min(first.memory or 0, last.memory or 0) >= 2**20:  # less is a few pages that happened to be fresh
            memory = float(np.log(last.memory / first.memory) / step)
        found[job] = float(np.log(last.seconds / first.seconds) / step), memory
    return found


def plot(points: Sequence[Point], path: Path) -> None:
    """Seconds and memory over the size, one line per job, beside the slope of linear growth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for job in dict.fromkeys(point.job for point in points):
        own = [point for point in points if point.job == job]
        at = [point.factor for point in own]
        left.plot(at, [point.seconds for point in own], marker="o", label=job)
        if all(point.memory for point in own):
            right.plot(at, [(point.memory or 0) / 2**20 for point in own], marker="o", label=job)
    for axes, label in ((left, "processor seconds"), (right, "memory above the start, MiB")):
        axes.set(xscale="log", yscale="log", xlabel="times the default", ylabel=label)
        low = min((line.get_ydata()[0] for line in axes.lines), default=1.0)
        axes.plot([1, 100], [low, 100 * low], color="grey", linestyle=":", label="linear")
    left.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def as_rows(points: Sequence[Point]) -> list[dict[str, object]]:
    """For the JSON file."""
    return [asdict(point) for point in points]
