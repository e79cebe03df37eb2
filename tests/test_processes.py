"""How processes end."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest

from rairl.core.processes import pool

GARBAGE = """
from rairl.core.processes import end_quickly
class Part:
    def __del__(self):
        print("found")
part = Part()
part.itself = part
{ending}
del part
"""
"""Garbage that only a search finds, since it holds itself."""


@pytest.mark.parametrize(("ending", "found"), [("", "found\n"), ("end_quickly()", "")])
def test_a_process_that_ends_quickly_looks_for_no_garbage(ending: str, found: str) -> None:
    code = GARBAGE.format(ending=ending)
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == found


def leave(path: Path) -> None:
    """What a process of a pool leaves behind: garbage, which a search would find at its end."""
    gc.disable()

    class Part:
        def __del__(self) -> None:
            path.write_text("found")

    part = Part()
    part.itself = part  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("make", "found"), [(pool, False), (partial(ProcessPoolExecutor, mp_context=get_context("spawn")), True)]
)
def test_the_processes_of_a_pool_end_so(
    make: Callable[[int], ProcessPoolExecutor], found: bool, tmp_path: Path
) -> None:
    with make(1) as jobs:
        jobs.submit(leave, tmp_path / "found").result()
    assert (tmp_path / "found").exists() == found
