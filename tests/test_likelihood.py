"""The log-ratio of SFT to base: by hand, on disk, and against the models' own log-probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.core.traces import Trace
from rairl.evaluate.likelihood import Likelihood, likelihoods, read_likelihoods, write_likelihoods
from rairl.models.base import new_model
from rairl.models.likelihood import LogProbs, step_logprobs
from rairl.models.policy import load_policy, save_policy


def test_the_ratio_by_hand() -> None:
    sft = LogProbs(np.array([-1.0, -4.0]), np.array([-0.5, -2.0]), -6.0, 5, np.array([0.1, 0.2]), 0.15)
    base = LogProbs(np.array([-3.0, -2.0]), np.array([-1.5, -1.0]), -8.5, 5, np.array([0.3, 0.4]), 0.35)
    ratio = Likelihood(sft, base).ratio
    np.testing.assert_allclose(ratio.steps, [2.0, -2.0])
    np.testing.assert_allclose(ratio.mean_steps, [1.0, -1.0])
    assert (ratio.total, ratio.tokens) == (2.5, 5)
    assert ratio.entropy == 0.15, "the policy's own"


def test_likelihoods_survive_the_disk_and_are_the_models_own(
    tiny_policy: Path, demos: list[Trace], miniature: Params, tmp_path: Path
) -> None:
    _, tokenizer = load_policy(tiny_policy)
    save_policy(tmp_path / "base", new_model(miniature.base, tokenizer, max_tokens=400, seed=1), tokenizer)
    pairs = likelihoods(demos, sft=tiny_policy, base=tmp_path / "base")
    write_likelihoods(tmp_path, "sft", "test", demos, pairs)
    back = read_likelihoods(tmp_path, "sft", "test", demos[3:5])
    expected = step_logprobs(*load_policy(tiny_policy), demos)[3]
    assert back[0].sft.total == pytest.approx(expected.total, abs=1e-3)
    np.testing.assert_allclose(back[0].sft.mean_steps, expected.mean_steps, atol=1e-3)
    np.testing.assert_allclose(back[0].sft.entropies, expected.entropies, atol=1e-3)
    assert back[0].sft.entropy == pytest.approx(expected.entropy, abs=1e-3)
    assert back[0].sft.tokens == back[0].base.tokens == expected.tokens
    assert not np.allclose(back[0].ratio.steps, 0, atol=1e-3)
    same = likelihoods(demos[:2], sft=tiny_policy, base=tiny_policy)
    assert [pair.ratio.total for pair in same] == [0, 0]


def test_a_peer_has_its_say_where_there_is_one(tiny_policy: Path, demos: list[Trace], tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()  # what the second model stage leaves when no second model is asked for
    for second_model in (tiny_policy, tmp_path / "none"):
        pairs = likelihoods(demos[:2], sft=tiny_policy, base=tiny_policy, second_model=second_model)
        write_likelihoods(tmp_path, "sft", "test", demos[:2], pairs)
        for pair in read_likelihoods(tmp_path, "sft", "test", demos[:2]):
            if second_model == tiny_policy:
                assert pair.second_model is not None
                assert pair.second_model.total == pair.sft.total
            else:
                assert pair.second_model is None


def test_a_trace_without_likelihood_is_an_error(tmp_path: Path, demos: list[Trace]) -> None:
    with pytest.raises(RairlError, match=r"sft\.test\.likelihood\.json does not exist"):
        read_likelihoods(tmp_path, "sft", "test", demos)
    (tmp_path / "sft.test.likelihood.json").write_text("{}")
    with pytest.raises(RairlError, match=r"lacks the likelihood of a trace .*run the sample stage again"):
        read_likelihoods(tmp_path, "sft", "test", demos)
