"""Paired timing: the ways to do one job in turn, in one process, and their ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass
class Times:
    """Seconds per unit of work of each run: by the clock, and of this process's processor time (all threads).

    Where other work runs on the machine only the second means anything; on a quiet one with one thread they agree.
    """

    clock: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def timed(self, job: Callable[[], float]) -> float:
        """Do a job and note its seconds per unit; it returns how many units it has done."""
        clock, processor = time.perf_counter(), time.process_time()
        units = job()
        self.add((time.perf_counter() - clock) / units, (time.process_time() - processor) / units)
        return units

    def add(self, clock: float, processor: float) -> None:
        """Note a run that was timed elsewhere."""
        self.clock.append(clock)
        self.processor.append(processor)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: is measured.
        peer: what it is compared with.
        ours: median seconds per unit.
        target: lowest ratio that will do.
        unit: of the work.
        runs: pairs behind the medians.
        ratio: median over the runs of peer / ours by the clock, and ``processor`` the same by processor time.
        floor: seconds per unit that the machine's arithmetic and bandwidth would need; None where not worked out.
    """

    what: str
    peer: str
    ours: float
    target: float
    unit: str
    runs: int
    ratio: float
    processor: float
    floor: float | None = None

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        return self.ratio >= self.target


def in_turn(jobs: Mapping[str, Callable[[], float]], runs: int) -> dict[str, Times]:
    """Do every job once to warm up, then all of them in turn ``runs`` times; each turn starts with another one."""
    names = list(jobs)
    for job in jobs.values():
        job()
    times = {name: Times() for name in names}
    for run in range(runs):
        for at in range(len(names)):
            name = names[(run + at) % len(names)]
            times[name].timed(jobs[name])
    return times


def ratio(peer: list[float], ours: list[float]) -> float:
    """Median over the pairs of peer / ours."""
    return statistics.median(a / b for a, b in zip(peer, ours, strict=True))


def row(what: str, name: str, ours: Times, peer: Times, target: float, unit: str, floor: float | None = None) -> Row:
    """A line from two series of paired runs."""
    return Row(
        what=what,
        peer=name,
        ours=statistics.median(ours.clock),
        target=target,
        unit=unit,
        runs=len(ours.clock),
        ratio=ratio(peer.clock, ours.clock),
        processor=ratio(peer.processor, ours.processor),
        floor=floor,
    )
