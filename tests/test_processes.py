"""How processes end."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import wait
from pathlib import Path

import pytest

from rairl.processes import pool

GARBAGE = """
from rairl.processes import end_quickly
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
    """What a process of the pool leaves behind: garbage, which a search would find at its end."""

    class Part:
        def __del__(self) -> None:
            path.write_text("found")

    part = Part()
    part.itself = part  # type: ignore[attr-defined]


def test_the_processes_of_a_pool_end_so(tmp_path: Path) -> None:
    with pool(1) as jobs:
        wait([jobs.submit(leave, tmp_path / "found")])
    assert not (tmp_path / "found").exists()
