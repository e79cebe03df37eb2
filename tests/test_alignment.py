"""Tokens and units meet by character positions, whatever the tokenizers."""

from __future__ import annotations

import numpy as np

from rairl.learn.token_alignment import spread_reads, units_of


def test_step_values_land_on_the_tokens_of_their_step() -> None:
    # units end at characters 3 and 7; tokens end at 1, 3, 4 (straddles nothing), 7, and the end token at 7
    values = spread_reads(np.array([10.0, 20.0]), [3, 7], [1, 3, 4, 7, 9])
    assert values.tolist() == [10, 10, 20, 20, 20]


def test_tokens_of_one_character_have_units_of_their_own() -> None:
    # "a✅b" in five tokens, the emoji in three; the reward reads every token, with the same tokenizer or another one
    tokens = [1, 2, 2, 2, 3]
    same = [1, 1 + 1 / 3, 1 + 2 / 3, 2, 3]
    assert units_of(same, tokens).tolist() == [0, 1, 2, 3, 4]
    assert units_of([1, 1.5, 2, 3], tokens).tolist() == [0, 1, 2, 2, 3]
    assert units_of([2, 3], tokens).tolist() == [0, 0, 0, 0, 1]
    assert units_of([1, 2, 3], [1, 2, 3]).tolist() == [0, 1, 2]


def test_what_follows_the_last_unit_belongs_to_it() -> None:
    assert units_of([2, 4], [1, 2, 3, 4, 5, 6]).tolist() == [0, 0, 1, 1, 1, 1]
