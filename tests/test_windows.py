"""Token windows: hits and their chance by hand, differences of token lists, positions across tokenizers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rairl.core.params import Params
from rairl.core.traces import Trace, relabel
from rairl.evaluate.windows import RULES, changed_tokens, hits, largest_drop, point, window_figures
from rairl.models.likelihood import completion_surprise
from rairl.models.policy import load_policy
from rairl.models.reading import encode
from rairl.models.reward import new_reward


def test_hits_by_hand() -> None:
    assert np.flatnonzero(hits([3], 40, "within_1")).tolist() == [2, 3, 4]
    assert np.flatnonzero(hits([3, 39], 40, "within_1")).tolist() == [2, 3, 4, 38, 39]
    assert hits([20], 40, "within_7").sum() == 15
    assert np.flatnonzero(hits([20], 40, "bucket")).tolist() == list(range(15, 30))
    assert hits([20], 40, "bucket_1").all(), "three of three buckets"
    assert hits([0], 60, "bucket_1").mean() == 0.5


@given(st.integers(1, 80), st.data())
def test_a_wider_rule_hits_where_a_narrower_one_does(size: int, data: st.DataObject) -> None:
    truth = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=4))
    windows = {rule: hits(truth, size, rule) for rule in RULES}
    for narrow, wide in (("within_1", "within_7"), ("bucket", "bucket_1"), ("within_7", "bucket_1")):
        assert not (windows[narrow] & ~windows[wide]).any()
    assert all(window[truth].all() for window in windows.values())


def test_changed_tokens_by_hand() -> None:
    assert changed_tokens([1, 2, 3, 4], [1, 9, 3, 4]) == [1]
    assert changed_tokens([1, 2, 3, 4], [1, 2, 7, 8, 3, 4]) == [2, 3]
    assert changed_tokens([1, 2, 3, 4], [1, 4]) == [1], "what follows the gap"
    assert changed_tokens([1, 2, 3], [1, 2]) == [1], "at the end, the last one"
    assert changed_tokens([1, 2], [1, 2]) == []


def test_largest_drop_by_hand() -> None:
    assert largest_drop(np.array([4, 9, 15]), np.array([1.0, -1.0, -1.5])) == 9
    assert largest_drop(np.array([4, 9]), np.array([-3.0, -4.0])) == 4, "the first is compared with 0"


def test_window_figures_by_hand() -> None:
    figures = window_figures({"reward": [5, 30]}, [[5], [3]], [45, 45], ["a", "b"], "x", draws=100, seed=0)
    values = {name: figure.value for name, figure in figures.items()}
    assert values["x.within_1.reward"] == values["x.bucket.reward"] == values["x.bucket_1.reward"] == 0.5
    assert values["x.within_1.chance"] == pytest.approx(3 / 45)
    assert values["x.bucket_1.chance"] == pytest.approx(2 / 3)
    assert values["x.bucket_1.reward-chance"] == pytest.approx(0.5 - 2 / 3)
    assert len(values) == 3 * len(RULES)


def test_positions_are_those_of_the_rewards_tokens(tiny_policy: Path, miniature: Params, demos: list[Trace]) -> None:
    network, tokenizer = load_policy(tiny_policy)
    trace = relabel(demos[0], first_error=1)
    model = new_reward(tiny_policy, miniature.reward, seed=0)
    [(policy, surprise)] = completion_surprise(network, tokenizer, [trace])
    written = surprise[policy.prompt_tokens :]
    assert surprise.shape == (len(policy.ids), 2) and np.isnan(surprise[: policy.prompt_tokens]).all()
    assert (written[:, 0] < 0).all() and (written[:, 1] > 0).all()
    [reads], [item] = model.token_reads([trace]), encode(model.tokenizer, [trace])
    found = point(trace, item, reads, policy, surprise)
    told = model.tokenizer.decode([found.ids[at] for at in found.step]).strip()
    assert trace.step_texts()[1].strip("\n ") in told
    completion = surprise[policy.prompt_tokens :]
    assert (found.at["logprob"], found.at["entropy"]) == (completion[:, 0].argmin(), completion[:, 1].argmax())
    # The reward reads at the end of each step, and of the text.
    assert reads.tokens.tolist()[-1] == len(found.ids) - 1 and len(reads.tokens) == len(trace.steps) + 1
    assert reads.ends.tolist() == [item.ends[at] for at in reads.tokens]
    assert found.at["reward"] in reads.tokens.tolist()
    [scores] = model.step_logits([trace])
    np.testing.assert_allclose(reads.logits[:-1], scores.steps)
