"""Processes of one machine: their number, and how quickly one starts and ends."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

KILLED = "the process was killed; there may not be enough memory for so many jobs"
"""What to say of a BrokenProcessPool."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def idle_jobs() -> int:
    """Processes that fit on the cores if each computes with as many threads as this one; 1 on a GPU."""
    import torch

    return 1 if torch.cuda.is_available() else max(1, cores() // torch.get_num_threads())


def pool(jobs: int) -> ProcessPoolExecutor:
    """A pool of ``jobs`` processes, spawned, not forked: a copy of a process in which torch has threads may hang."""
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=end_quickly)


def end_quickly() -> None:
    """Let this process end without a search for garbage, which takes a second where torch and transformers are loaded.

    The interpreter makes the search at its end even when collection is off; what is frozen is left out of it. So what
    has to be written or closed must not wait for it.
    """
    atexit.register(gc.freeze)


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection inside, for large imports: they make no garbage, and looking for it takes long."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()
