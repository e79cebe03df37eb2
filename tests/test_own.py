"""A user's own file: which format it is in, what is read of it, and what is said of lines that can't be used."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_labelled import BIGBENCH, MR_BEN, PROCESSBENCH

from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.core.traces import Trace
from rairl.datasets import labelled
from rairl.datasets.logged import plain
from rairl.evaluate.best_of_n import best_of_n
from rairl.evaluate.calibrate import selection
from rairl.evaluate.scores import read_scores, write_scores
from rairl.models.calibration import AGGREGATORS, NOTHING, Calibration, TraceScore
from rairl.models.reads import Scores
from rairl.models.reward import RewardModel, new_reward
from rairl.use.apply import rerank_rows, score_pieces, score_rows
from rairl.use.scoring import judge
from rairl.use.user_files import FORMATS, detect, pieces, read_own, require, survey

OURS: dict[str, Any] = {"id": "a", "problem": "p", "text": "one\ntwo"}
ROWS = {"rairl": OURS, "processbench": PROCESSBENCH, "mr_ben": MR_BEN, "bigbench_mistake": BIGBENCH}
REAL = {
    "processbench": "processbench/gsm8k.jsonl",
    "mr_ben": "mr_ben/medicine.jsonl",
    "bigbench_mistake": "bigbench_mistake/multistep_arithmetic.jsonl",
}


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "own.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_row_gives_its_format_away() -> None:
    assert {name: detect(row) for name, row in ROWS.items()} == {name: name for name in FORMATS}
    assert detect({**OURS, "steps": ["one"], "first_error": 0}) == "rairl"


@pytest.mark.parametrize("name", ["processbench", "mr_ben", "bigbench_mistake"])
def test_rows_of_the_public_sets_are_read_as_the_pipeline_reads_them(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, ROWS[name])
    own = read_own(path)
    assert (own.form, own.lines, own.left_out) == (name, [1], [])
    assert own.traces == [plain(trace) for trace in labelled.load(path).traces]
    assert own.traces == read_own(path, form=name).traces
    assert labelled.load(path).name == name


@pytest.mark.parametrize("name", REAL)
def test_the_real_files_are_read_as_they_are(shared_data: Path, name: str) -> None:
    path = shared_data / REAL[name]
    own, expected = read_own(path), labelled.load(path)
    assert own.form == expected.name == name
    assert own.traces == [plain(trace) for trace in expected.traces]
    assert own.left_out == [f"{path}, {reason}" for reason in expected.left_out]
    assert len(own.traces) == {"processbench": 400, "mr_ben": 826, "bigbench_mistake": 300}[name]


def test_a_format_can_be_told_and_must_be_known(tmp_path: Path) -> None:
    path = write(tmp_path, OURS)
    assert read_own(path, form="rairl").form == "rairl"
    with pytest.raises(RairlError, match=r"own\.jsonl, line 1: field 'steps' must be a non-empty list"):
        read_own(path, form="processbench")
    with pytest.raises(RairlError, match="format 'prm800k' is unknown; it is auto or one of bigbench_mistake, mr_ben"):
        read_own(path, form="prm800k")


def test_bad_lines_stop_or_are_left_out_with_their_number(tmp_path: Path) -> None:
    path = write(tmp_path, PROCESSBENCH, "{", {**PROCESSBENCH, "id": "y", "label": 7}, PROCESSBENCH, "[1]", "")
    with pytest.raises(RairlError, match=r"own\.jsonl, line 2: not valid JSON"):
        read_own(path)
    own = read_own(path, skip_bad=True)
    assert (own.form, own.lines) == ("processbench", [1])
    assert [message.split(": ")[0].split(", ")[1] for message in own.left_out] == [f"line {n}" for n in (2, 3, 4, 5)]
    assert "'x-0' already occurs on line 1" in own.left_out[2]
    with pytest.raises(RairlError, match="has no usable rows"):
        read_own(write(tmp_path, "{"), skip_bad=True)
    with pytest.raises(RairlError, match=r"absent\.jsonl does not exist"):
        read_own(tmp_path / "absent.jsonl")
    with pytest.raises(RairlError, match="is a folder; a JSON-lines file is needed"):
        read_own(tmp_path)


def test_a_label_that_names_no_step_stops_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, MR_BEN, {**MR_BEN, "Sampled_Model": "n", "Model_Solution_First_Error_Step": "4"})
    own = read_own(path)
    assert own.lines == [1]
    assert own.left_out == [f"{path}, line 2: label 4 names no step; the numbered steps are 1 to 3"]


def test_what_fails_a_later_check_is_named_by_its_line(tmp_path: Path) -> None:
    own = read_own(write(tmp_path, OURS, "", {**OURS, "id": "b"}))

    def check(trace: Trace) -> None:
        if trace.id == "b":
            raise RairlError("too long")

    with pytest.raises(RairlError, match=r"own\.jsonl, line 3: too long"):
        require(own, check)
    kept = require(own, check, skip_bad=True)
    assert ([trace.id for trace in kept.traces], kept.lines) == (["a"], [1])
    assert kept.left_out == [f"{own.path}, line 3: too long"]
    assert own.left_out == []


def test_pieces_are_the_whole_file_without_what_is_left_out(tmp_path: Path) -> None:
    def check(trace: Trace) -> None:
        if trace.id == "3":
            raise RairlError("too long")

    rows = [{**OURS, "id": str(at)} for at in range(8)]
    path = write(tmp_path, "{", *rows[:6], {**OURS, "id": "1"}, *rows[6:])
    found = survey(path, skip_bad=True, check=check)
    assert (found.form, found.lines) == ("rairl", {2, 3, 4, 6, 7, 9, 10})
    kept = require(read_own(path, skip_bad=True), check, skip_bad=True)
    assert sorted(found.left_out) == sorted(kept.left_out)
    assert "line 8: field 'id': '1' already occurs on line 3" in found.left_out[2]
    read = list(pieces(found, 3))
    assert [len(piece) for piece in read] == [3, 3, 1]
    assert [trace for piece in read for trace in piece] == kept.traces


def test_a_survey_stops_where_reading_does(tmp_path: Path) -> None:
    path = write(tmp_path, OURS, {**OURS, "id": "b"}, OURS)
    with pytest.raises(RairlError, match="line 3: field 'id': 'a' already occurs on line 1"):
        survey(path)
    with pytest.raises(RairlError, match="no usable rows"):
        survey(write(tmp_path, "{"), skip_bad=True)
    with pytest.raises(RairlError, match="format 'prm800k' is unknown"):
        survey(path, form="prm800k")
    path.write_bytes(b'{"id": "a", "problem": "p", "text": "x"}\r\n\xff')
    with pytest.raises(RairlError, match=r"not UTF-8 text \(byte 42\)"):
        survey(path)


def test_scores_in_pieces_are_those_of_the_whole_and_one_piece_is_held(
    tmp_path: Path, tiny_policy: Path, miniature: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = new_reward(tiny_policy, miniature.reward, seed=0).eval()
    path = write(tmp_path, *({**OURS, "id": str(at), "text": f"one\n{'two ' * (at % 7)}\n{at}"} for at in range(40)))
    logits, held = RewardModel.step_logits, list[int]()

    def watched(self: RewardModel, traces: list[Trace], **options: Any) -> list[Any]:
        gc.collect()
        held.append(sum(type(thing) is Trace and thing.problem == OURS["problem"] for thing in gc.get_objects()))
        return logits(self, traces, chunk=8, **options)

    monkeypatch.setattr(RewardModel, "step_logits", watched)
    streamed = list(score_pieces(pieces(survey(path), 8), model, 40))
    assert len(held) == 5 and max(held) <= 2 * 8 + 1, "the piece, and at most the one before it"
    assert streamed == list(score_rows(read_own(path).traces, model))


# --- who says nothing ------------------------------------------------------------------------------------------------


class Bad:
    """A reward that finds fault with every step, so that nothing would look better than something."""

    calibration = Calibration()

    def step_logits(self, traces: Any) -> list[Scores]:
        return [Scores(np.full(len(trace.steps), -5.0), -5.0 if trace.steps else 3.0) for trace in traces]

    def score_traces(self, traces: Any, **_: Any) -> list[TraceScore]:
        pairs = zip(traces, self.step_logits(traces), strict=True)
        return [self.calibration.apply(trace, read) for trace, read in pairs]


@pytest.mark.parametrize("how", AGGREGATORS)
@pytest.mark.parametrize("empty", ["\n", " \n ", "\u200b\n", "<think>\n</think>", "```\n```", "\\[\n\\]", "---\n***"])
def test_nothing_is_ranked_below_everything_with_steps(tmp_path: Path, empty: str, how: str) -> None:
    texts = ["1 + 1 = 3\nso 3", empty, "two\nthree", "1 + 1 = 2"]
    rows = [{"id": str(at), "problem": "p", "text": text} for at, text in enumerate(texts)]
    traces = read_own(write(tmp_path, *rows)).traces
    reward: Any = Bad()
    reward.calibration = Calibration(aggregator=how)
    [row] = rerank_rows(traces, reward)
    assert [item["id"] for item in row["ranking"]][-1] == "1" and row["best"] != "1"
    assert [verdict.rank for verdict in judge(reward, traces)][1] == 4
    write_scores(tmp_path / "s.json", traces, reward.step_logits(traces), reward.calibration)
    saved = read_scores(tmp_path / "s.json")
    for scores in (saved.rivals(traces), saved.scores_by(traces, how)):
        assert best_of_n(scores, [at == 1 for at in range(4)], 4) == 0
        assert scores[1] == min(scores) and np.isfinite(scores).all()


def test_what_says_nothing_has_no_part_in_the_map_to_probabilities() -> None:
    rollouts = [Trace(str(at), "p", "t", correct=at % 3 > 0) for at in range(12)]
    scores = [float(at % 3) for at in range(12)]
    chosen = Calibration(aggregator="mean")
    plain = selection(rollouts, {"mean": scores}, chosen)
    quiet = selection([*rollouts, Trace("x", "p", "\n", correct=False)], {"mean": [*scores, NOTHING]}, chosen)
    assert (quiet.slope, quiet.intercept) == (plain.slope, plain.intercept)
