"""The published table holds the published numbers, and a finished run fills in its own row and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from rairl.core.errors import RairlError
from rairl.core.params import Params, parse_params
from rairl.paper import fill, row_of
from rairl.preflight.presets import compose

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
FIGURES = {
    f"posttrain.{policy}.pass@1": {"value": value, "low": value - 0.02, "high": value + 0.02, "n": 1319}
    for policy, value in (("grpo", 0.9), ("sft", 0.75), ("rairl", 0.88))
}


@pytest.fixture
def cell() -> Params:
    return parse_params(compose(["dataset=gsm8k", "model=qwen3-4b", "method=interval"]))


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("gsm8k/qwen3-4b/interval", "91.6 | 76.6 | 87.8"),
        ("gsm8k/qwen2.5-7b/dense", "89.0 | 70.1 | 38.4"),
        ("medreason/llama-3.1-8b/sparse", "73.4 | 63.5 | 73.1"),
        ("mmlu_pro/llama-3.1-8b/interval", "48.5 | 47.2 | 36.6"),
    ],
)
def test_rows_hold_the_published_numbers(name: str, published: str) -> None:
    assert row_of(name, PAGE).startswith(f"| {name} | {published} |")


def test_every_row_is_a_cell_that_composes() -> None:
    rows = [line for line in PAGE.partition("<!-- paper -->")[2].split("\n") if line.count("/") >= 2]
    assert len(rows) == 27
    for row in rows:
        dataset, model, method = row.split("|")[1].strip().split("/")
        parse_params(compose([f"dataset={dataset}", f"model={model}", f"method={method}"]))


def test_a_run_fills_in_its_row_alone(cell: Params) -> None:
    name = "gsm8k/qwen3-4b/interval"
    page = fill(PAGE, name, FIGURES, cell, "abc1234")
    assert row_of(name, page) == (
        f"| {name} | 91.6 | 76.6 | 87.8 | 90.0 [88.0, 92.0] / 75.0 [73.0, 77.0] / 88.0 [86.0, 90.0] | 1 (seed 42) "
        "| abc1234 |"
    )
    changed = [line for line, other in zip(page.split("\n"), PAGE.split("\n"), strict=True) if line != other]
    assert changed == [row_of(name, page)]
    assert fill(page, name, FIGURES, cell, "abc1234") == page


def test_what_cannot_be_filled_in_is_named(cell: Params) -> None:
    with pytest.raises(RairlError, match="no cell of the published table"):
        fill(PAGE, "gsm8k/gpt/interval", FIGURES, cell, "x")
    with pytest.raises(RairlError, match=r"no posttrain\.grpo\.pass@1"):
        fill(PAGE, "gsm8k/qwen3-4b/interval", {}, cell, "x")
    warm = cell.model_copy(update={"sample": cell.sample.model_copy(update={"temperatures": [1.0]})})
    with pytest.raises(RairlError, match=r"sample\.temperatures"):
        fill(PAGE, "gsm8k/qwen3-4b/interval", FIGURES, warm, "x")
