"""The benchmarks run, at miniature size, and their arithmetic is right. Nothing here looks at how fast anything is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("benchmarks", reason="the benchmarks are in the repository, not in the package")

from benchmarks import __main__ as bench
from benchmarks import floors, growth, rows
from benchmarks.growth import Point, exponents
from benchmarks.material import Material
from benchmarks.paired import Times, in_turn, ratio, row
from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.core.traces import Trace, write_traces
from rairl.models.reward import new_reward


@pytest.fixture
def small(tmp_path: Path, tiny_policy: Path, miniature: Params, demos: list[Trace], root: Path) -> Path:
    """A folder as `make repro` leaves it, with untrained models and experts for candidates."""
    for name in ("sft", "second_model"):
        shutil.copytree(tiny_policy, tmp_path / "models" / name)
    new_reward(tiny_policy, miniature.reward, seed=0).save_pretrained(tmp_path / "models" / "reward")
    shutil.copyfile(root / "tests" / "miniature.yaml", tmp_path / "params.yaml")
    for name in ("data", "candidates"):
        (tmp_path / name).mkdir()
    for name in ("data/test.jsonl", "data/demos.jsonl", "candidates/sft.test.jsonl"):
        write_traces(tmp_path / name, demos)
    return tmp_path


MACHINE = floors.Machine(flops=1e9, bandwidth=1e9)


@pytest.mark.slow
def test_the_command_writes_table_json_plot_and_documentation(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(floors, "measure", lambda: MACHINE)
    monkeypatch.setattr(growth, "FACTORS", (1, 2))
    monkeypatch.setitem(rows.ROWS, "rollouts", partial(rows.rollouts, shapes=((2, 2),)))
    monkeypatch.setitem(rows.ROWS, "candidates", partial(rows.candidates_of_one, prompt=20, n=3))
    monkeypatch.setitem(rows.ROWS, "file", partial(rows.large_file, count=3))
    docs, card = small / "docs" / "performance.md", small / "bench.json"
    docs.parent.mkdir()
    docs.write_text(f"Before.\n{bench.MARKS[0]}\nold\n{bench.MARKS[1]}\nAfter.\n")
    names = ["rollouts", "candidates", "file", "growth"]
    bench.main([*names, "--runs", "2", "--root", str(small), "--json", str(card), "--docs", str(docs)])
    written = json.loads(card.read_text())
    assert [line["what"].split(",")[0].split(" ")[0] for line in written["rows"]] == ["rollouts"] * 2 + ["scoring"] * 3
    assert all(line["ratio"] > 0 and line["processor"] > 0 for line in written["rows"])
    assert [line["runs"] for line in written["rows"]] == [2, 2, 12, 2, 2]  # more pairs of what takes a moment
    assert len(written["growth"]) == 8 and {point["factor"] for point in written["growth"]} == {1, 2}
    text = docs.read_text()
    assert text.startswith("Before.\n") and text.endswith("\nAfter.\n") and "old" not in text
    assert capsys.readouterr().out.strip() in text
    assert (docs.parent / "plots" / "growth.png").stat().st_size > 1000


@pytest.mark.slow
def test_an_iteration_runs_beside_one_of_trl(small: Path) -> None:
    pytest.importorskip("trl", reason="TRL is an optional extra: pip install 'rairl[trl]'")
    without, whole = rows.iteration(Material.of(small), 1, MACHINE)
    assert without.runs == whole.runs == 1 and without.target == 2.0 and whole.target == 1.0
    assert without.ratio and whole.ratio


@pytest.mark.slow
def test_continuous_batching_runs(small: Path) -> None:
    material = Material.of(small)
    (line,) = rows.continuous(material, 1, MACHINE, prompts=1, n=2)
    assert line.ratio


def test_without_a_finished_run_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RairlError, match="make repro"):
        Material.of(tmp_path)
    with pytest.raises(RairlError, match=r"nothing: no such row; there are rollouts"):
        bench.main(["nothing"])


def test_documentation_without_marks_is_refused_and_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text")
    with pytest.raises(RairlError, match="add the two lines"):
        bench._into(page, "table")
    assert page.read_text() == "text"


def test_ratios_are_medians_over_pairs_and_not_ratios_of_medians() -> None:
    second_model, ours = [4.0, 9.0, 10.0], [1.0, 3.0, 10.0]  # pairs: 4, 3, 1
    assert ratio(second_model, ours) == 3.0
    line = row("a", "b", Times(ours, [1.0, 1.0, 2.0]), Times(second_model, [2.0, 2.0, 2.0]), 3.0, "token")
    assert (line.ours, line.ratio, line.processor, line.runs, line.met) == (3.0, 3.0, 2.0, 3, True)
    assert not replace(line, target=3.1).met


def test_every_job_takes_its_turn_first_and_counts_its_units() -> None:
    order: list[str] = []
    times = in_turn({name: lambda name=name: order.append(name) or 2.0 for name in "ab"}, 3)  # type: ignore[misc]
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert all(len(series.clock) == len(series.processor) == 3 for series in times.values())


def test_the_floor_of_a_rollout_by_hand() -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(vocab_size=5, hidden_size=2, intermediate_size=3, num_hidden_layers=1, num_attention_heads=1)
    # products: 4*2*2 + 3*2*3 = 34 weights, and 2*5 for the logits
    assert floors.matmul_flops(config) == 2 * 44 and floors.matmul_flops(config, logits=False) == 2 * 34
    # a prompt of 3 tokens, completions of 1 and 2: they see 1*3 + 1 and 2*3 + 3 tokens, the prompt 6
    flops, moved = floors.rollout_work(config, [3], [1, 2])
    assert flops == 88 * (3 + 3) + 4 * 1 * 2 * (4 + 9 + 6)
    assert moved == 2 * 4 * 1 * 2 * (4 + 9)
    assert floors.Machine(flops=10, bandwidth=4).floor(100, 20) == 10.0  # 10 s of arithmetic, 5 s of moving
    measured = floors.measure(size=32, floats=64)
    assert measured.flops > 0 and measured.bandwidth > 0


def test_the_power_of_growth_by_hand() -> None:
    points = [Point("job", factor, factor, float(factor) ** 2, 3 * factor * 2**20) for factor in (1, 10, 100)]
    ((seconds, memory),) = exponents(points).values()
    assert seconds == pytest.approx(2) and memory == pytest.approx(1)
    assert exponents([replace(point, memory=None) for point in points])["job"][1] is None
    few_pages = replace(points[1], memory=12_288)
    assert exponents([few_pages, points[2]])["job"][1] is None
