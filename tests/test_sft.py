"""Language-model training: the loss covers what it should, the best epoch wins, a killed run goes on."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import token_logprobs
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm
from transformers import PreTrainedModel

from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.core.traces import Trace
from rairl.learn.checkpoints import checkpoint_folder, latest
from rairl.learn.language_model import (
    Fit,
    _backward,
    adamw,
    cosine,
    examples,
    fit,
    lm_loss,
    mean_loss,
    muon,
    shuffled_batches,
)
from rairl.learn.learner import Learner
from rairl.models.policy import load_policy


def test_loss_covers_the_completion_and_the_end_token_only(tiny_policy: Path, demos: list[Trace]) -> None:
    model, tokenizer = load_policy(tiny_policy)
    (ids, skip), *_ = rows = examples(tokenizer, demos[:2])
    assert ids[-1] == tokenizer.eos_token_id
    with torch.no_grad():
        loss = lm_loss(model, rows[:1], tokenizer.pad_token_id).item()
        tensor = torch.tensor([ids])
        by_hand = -token_logprobs(model, tensor)[0, skip:].mean().item()
    assert loss == pytest.approx(by_hand, rel=1e-5)
    assert examples(tokenizer, demos[:1], whole=True)[0][1] == 0


def test_examples_have_one_think_and_the_end_that_generate_knows(tiny_policy: Path, demos: list[Trace]) -> None:
    _, tokenizer = load_policy(tiny_policy)
    [(plain, _)] = examples(tokenizer, demos[:1])
    tokenizer.chat_template += "{{ '<think>\n' }}"
    [(ids, skip)] = examples(tokenizer, demos[:1], end=7)
    assert tokenizer.decode(ids).count("<think>") == 1
    assert ids == [*plain[:-1], 7]  # the same text, of which the template writes the beginning
    assert tokenizer.decode(ids[:skip]).endswith("<think>\n")


def test_mean_loss_weighs_tokens_whatever_the_batches(tiny_policy: Path, demos: list[Trace]) -> None:
    model, tokenizer = load_policy(tiny_policy)
    rows = examples(tokenizer, demos)
    one = mean_loss(model, rows, 0, batch_size=3)
    assert one == pytest.approx(mean_loss(model, rows, 0, batch_size=100), rel=1e-5)


def test_micro_batches_give_the_gradient_of_the_whole_batch(tiny_policy: Path, demos: list[Trace]) -> None:
    model, tokenizer = load_policy(tiny_policy)
    rows = examples(tokenizer, demos[:5])
    found = []
    for tokens in (None, 2 * max(len(ids) for ids, _ in rows), 1):
        model.zero_grad(set_to_none=True)
        loss = _backward(Learner(model, []), rows, tokenizer.pad_token_id, tokens)
        found.append((loss, [value.grad.clone() for value in model.parameters()]))
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        for one, other in zip(gradients, found[0][1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 3))
def test_an_epoch_holds_every_row_once(count: int, size: int, seed: int) -> None:
    rows = [([1] * (index % 7 + 1), index) for index in range(count)]
    batches = list(shuffled_batches(rows, size, str(seed)))
    assert sorted(skip for batch in batches for _, skip in batch) == list(range(count))
    assert batches == list(shuffled_batches(rows, size, str(seed)))


def test_rate_warms_up_and_decays_to_a_tenth() -> None:
    values = [cosine(step, 100, 10) for step in range(100)]
    assert values[0] == pytest.approx(0.1) and max(values) == 1.0
    assert values[-1] == pytest.approx(0.1, abs=0.01)
    assert all(late <= early for early, late in itertools.pairwise(values[10:]))


def plan(model: PreTrainedModel, model_dev: list[float], epochs: int) -> Fit:
    losses = iter(model_dev)
    batch = [([5, 6, 7, 8], 0)]
    return Fit(
        Learner(model, adamw(model)),
        epochs,
        lambda epoch: [batch, batch],
        lambda step: 1e-3,
        lambda model: next(losses),
    )


def test_the_best_epoch_wins_and_the_last_is_handed_out(tiny_policy: Path, tmp_path: Path) -> None:
    model, _ = load_policy(tiny_policy)
    seen: list[torch.Tensor] = []

    def on_epoch(row: dict[str, float]) -> None:
        seen.append(model.lm_head.weight.detach().clone())

    losses = [3.0, 2.0, 2.5, 2.4, 2.3]
    last: list[torch.Tensor] = []
    history = fit(
        model,
        plan(model, losses, 5),
        0,
        folder=tmp_path,
        desc="sft",
        on_epoch=on_epoch,
        on_last=lambda: last.append(model.lm_head.weight.detach().clone()),
    )
    assert [row["dev/loss"] for row in history] == losses
    assert history[-1]["batches"] == 10
    assert torch.equal(model.lm_head.weight, seen[1])
    assert torch.equal(last[0], seen[4])
    assert not torch.equal(last[0], seen[1])


def test_a_resumed_fit_ends_with_the_same_weights(tiny_policy: Path, demos: list[Trace], tmp_path: Path) -> None:
    _, tokenizer = load_policy(tiny_policy)
    rows = examples(tokenizer, demos)

    def run(folder: Path, stop_after: int | None = None) -> torch.Tensor:
        model, _ = load_policy(tiny_policy)
        what = Fit(
            Learner(model, muon(model)), 3, lambda epoch: list(shuffled_batches(rows, 4, str(epoch))), lambda step: 1e-3
        )

        def on_epoch(row: dict[str, float]) -> None:
            if row["step"] == stop_after:
                raise KeyboardInterrupt

        fit(model, what, tokenizer.pad_token_id, folder=folder, desc="fit", on_epoch=on_epoch)
        return model.lm_head.weight.detach()

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_after=1)
    assert latest(tmp_path / "cut") is not None
    torch.testing.assert_close(run(tmp_path / "cut"), whole, atol=0, rtol=0)


def test_a_bar_that_is_switched_off_changes_nothing(
    tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rairl.learn.language_model.tqdm", partial(tqdm, disable=True))
    model, _ = load_policy(tiny_policy)
    steps: list[int] = []
    batch = [([5, 6, 7, 8], 0)]
    what = Fit(Learner(model, adamw(model)), 2, lambda epoch: [batch, batch], lambda step: steps.append(step) or 1e-3)  # type: ignore[func-returns-value]
    rows = fit(model, what, 0, folder=tmp_path, desc="sft", on_epoch=lambda row: None)
    assert steps == [0, 1, 2, 3] and [row["batches"] for row in rows] == [2, 4]


def test_muon_takes_every_parameter_once(tiny_policy: Path) -> None:
    model, _ = load_policy(tiny_policy)
    first, second = muon(model)
    taken = [
        id(value) for optimizer in (first, second) for group in optimizer.param_groups for value in group["params"]
    ]
    assert sorted(taken) == sorted(id(value) for value in model.parameters())
    assert all(value.ndim == 2 for group in first.param_groups for value in group["params"])


def test_a_loss_that_is_no_number_is_an_error(tiny_policy: Path, tmp_path: Path) -> None:
    model, _ = load_policy(tiny_policy)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(RairlError, match="the loss is nan at batch 0 of base"):
        fit(model, plan(model, [1.0], 1), 0, folder=tmp_path, desc="base", on_epoch=lambda row: None)


def test_checkpoints_belong_to_one_configuration(miniature: Params, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text("{}")
    first = checkpoint_folder("sft", miniature, [tmp_path / "card.json"])
    assert first == checkpoint_folder("sft", miniature, [tmp_path / "card.json"])
    assert first != checkpoint_folder("sft", miniature.model_copy(update={"seed": 1}), [tmp_path / "card.json"])
    (tmp_path / "card.json").write_text("{ }")
    assert first != checkpoint_folder("sft", miniature, [tmp_path / "card.json"])
