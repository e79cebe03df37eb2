"""The lagging copy and the running scale: numbers by hand and naive references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rairl.learn.scorer import LaggingCopy, RunningStd


def test_the_copy_lags_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([0.0]))
    copy = LaggingCopy({"weight": weight}, 0.9)
    for value, expected in ((1.0, 0.1), (1.0, 0.19), (0.0, 0.171)):
        weight.data.fill_(value)
        copy.update()
        assert copy.values["weight"].item() == pytest.approx(expected)


def test_the_copy_is_swapped_in_and_out_again_whatever_happens() -> None:
    weight = nn.Parameter(torch.tensor([2.0]))
    copy = LaggingCopy({"weight": weight}, 0.5)
    weight.data.fill_(4.0)
    with copy.swapped_in():
        assert weight.item() == 2.0
    assert weight.item() == 4.0
    with pytest.raises(RuntimeError), copy.swapped_in():
        raise RuntimeError
    assert (weight.item(), copy.values["weight"].item()) == (4.0, 2.0)
    other = LaggingCopy({"weight": nn.Parameter(torch.tensor([0.0]))}, 0.5)
    other.load(copy.values)
    assert other.values["weight"].item() == 2.0


@given(st.lists(st.lists(st.floats(-1e3, 1e3), max_size=6), max_size=6))
def test_the_running_deviation_is_that_of_everything(parts: list[list[float]]) -> None:
    running = RunningStd()
    for part in parts:
        running = RunningStd(*running.state())  # what a checkpoint keeps is enough
        running.add(part)
    everything = [value for part in parts for value in part]
    assert running.std == pytest.approx(np.std(everything) if everything else 0.0, abs=1e-6)
