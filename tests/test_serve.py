"""From a request to a verdict, and the registered model as somebody else loads it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FixedReward

from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.core.traces import Trace
from rairl.models.calibration import Calibration
from rairl.tracking.courier import stage_run
from rairl.tracking.pyfunc import REQUIREMENTS, requirements
from rairl.tracking.store import tracking_uri
from rairl.use.scoring import MAX_SOLUTIONS, Solution, judge, to_trace, to_traces

TEXT = "<think>\n2 + 2 = 4\n4 * 3 = 12\n</think>\n<answer>\n12\n</answer>"


# --- requests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "text", "steps"),
    [
        ({"steps": ["2 + 2 = 4", "4 * 3 = 12"], "answer": "12"}, TEXT, ["2 + 2 = 4", "4 * 3 = 12"]),
        ({"text": TEXT}, TEXT, ["2 + 2 = 4", "4 * 3 = 12"]),
        ({"text": "It is 4. So 12."}, "It is 4. So 12.", ["It is 4.", "So 12."]),
        ({"text": "It is 4. So 12.", "steps": ["It is 4. So 12."]}, "It is 4. So 12.", ["It is 4. So 12."]),
    ],
)
def test_a_solution_becomes_a_trace(request_: dict, text: str, steps: list[str]) -> None:
    trace = to_trace(Solution(problem="How many?", **request_), 3)
    assert (trace.id, trace.problem, trace.text, trace.step_texts()) == ("3", "How many?", text, steps)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "input 2: 'text' or 'steps' must hold the solution"),
        ({"text": "", "steps": []}, "input 2: 'text' or 'steps' must hold the solution"),
        ({"text": "a b", "steps": ["c"]}, "input 2: field 'steps': item 0"),
        ({"text": "a b", "answer": "1"}, "input 2: 'answer' goes with 'steps' alone"),
        ({"steps": ["a", " "]}, r"input 2: steps\[1\]"),
    ],
)
def test_a_solution_that_makes_no_sense_is_named(request_: dict, message: str) -> None:
    with pytest.raises(RairlError, match=message):
        to_trace(Solution(problem="How many?", **request_), 2)


# --- verdicts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calibration", "score", "first_error"),
    [
        # reads 1, 3, -1, 0 and last -2: increments 1, 2, -4, 1
        (Calibration("last", "drop", None), -2.0, 2),
        (Calibration("mean", "drop", -3.0), 0.75, 2),
        (Calibration("min", "drop", -5.0), -1.0, -1),
        (Calibration("last", "argmin", 0.5), -2.0, 2),
        (Calibration("last", "argmin", 1.5), -2.0, 0),
    ],
)
def test_a_verdict_follows_the_calibration(calibration: Calibration, score: float, first_error: int) -> None:
    model = FixedReward()
    model.calibration = calibration
    row = {"id": "a", "problem": "p", "steps": ["b", "c", "d", "e"], "meta": {"reads": [1.0, 3.0, -1.0, 0.0, -2.0]}}
    (verdict,) = judge(model, [Trace.from_json(row)])  # type: ignore[arg-type]
    assert verdict.step_scores == [1.0, 3.0, -1.0, 0.0]
    assert (verdict.score, verdict.first_error) == (score, first_error)


def test_a_trace_without_steps_has_a_score_and_no_wrong_step() -> None:
    (verdict,) = judge(FixedReward(), [Trace("a", "b", meta={"reads": [0.5]})])  # type: ignore[arg-type]
    assert (verdict.step_scores, verdict.score, verdict.first_error) == ([], 0.5, -1)


def test_ranks_are_among_the_solutions_of_a_problem() -> None:
    values = {"a": 0.5, "b": 2.0, "c": 0.5, "d": -1.0}
    traces = [Trace(key, "q" if key == "d" else "p", meta={"reads": [read]}) for key, read in values.items()]
    assert [verdict.rank for verdict in judge(FixedReward(), traces)] == [2, 1, 2, 1]  # type: ignore[arg-type]


def test_a_request_has_limits() -> None:
    one = Solution(problem="p", text="t")
    assert len(to_traces([one] * MAX_SOLUTIONS)) == MAX_SOLUTIONS
    for count in (0, MAX_SOLUTIONS + 1):
        with pytest.raises(RairlError, match=f"1 to {MAX_SOLUTIONS} solutions .* not {count}"):
            to_traces([one] * count)
    with pytest.raises(RairlError, match="input 0: problem and solution have more than 100000 characters"):
        to_traces([Solution(problem="p", steps=["x" * 50_000] * 2)])
    with pytest.raises(RairlError, match="input 1: half of a surrogate pair"):
        to_traces([one, Solution.model_construct(problem="p", text="a\ud800", steps=None, answer=None)])


def test_requirements_are_pinned_without_build_tags() -> None:
    pins = requirements()
    assert [pin.split("==")[0] for pin in pins] == list(REQUIREMENTS)
    assert not any("+" in pin for pin in pins)


# --- the registered model -------------------------------------------------------------------------------------------

LOAD = """
import json, sys
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/rairl-reward@champion")
import rairl
from mlflow.exceptions import MlflowException
answers = model.predict(json.loads(sys.argv[2]))
refused = []
for bad in ([{"problem": "p"}], [{"problem": 1, "text": "t"}], [{"problem": "p", "txt": "t"}]):
    try:
        model.predict(bad)
    except MlflowException as error:
        refused.append([error.error_code, str(error)])
schema = model.metadata.signature.inputs.to_dict()
print(json.dumps({"code": rairl.__file__, "answers": answers, "refused": refused, "schema": schema}))
"""


@pytest.fixture
def tiny_reward(tmp_path: Path, miniature: Params) -> Path:
    """A real reward model with an untrained backbone and a head that is not zero."""
    import torch

    from rairl.models.base import new_model, train_tokenizer
    from rairl.models.reward import RewardModel

    torch.manual_seed(0)
    tokenizer = train_tokenizer([f"How many are {n} and {n}? {TEXT}" for n in range(20)], 300)
    backbone = new_model(miniature.base, tokenizer, max_tokens=128, seed=0)
    model = RewardModel(backbone, tokenizer, miniature.reward, Calibration("mean", "drop", -100.0))
    folder = tmp_path / "checkpoint-1"
    model.save_pretrained(folder)
    return folder


def test_the_champion_loads_elsewhere_with_its_own_code(project: Path, miniature: Params, tiny_reward: Path) -> None:
    from rairl.models.reward import RewardModel

    with stage_run("rairl", miniature, log_dir=project / "metrics", root=project) as run:
        run.register_reward(tiny_reward, 1, {"dev.auroc": 0.5})
        run.promote_champion("dev.auroc")
    requests = [
        {"problem": "How many are 2 and 2?", "steps": ["2 + 2 = 4", "4 * 3 = 12"], "answer": "12"},
        {"problem": "How many are 3 and 3?", "text": TEXT},
    ]
    expected = RewardModel.from_pretrained(tiny_reward).step_logits(
        [to_trace(Solution(**request)) for request in requests]
    )

    elsewhere = project.parent / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", LOAD, tracking_uri(project), json.dumps(requests)],
        cwd=elsewhere,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    reply = json.loads(done.stdout.splitlines()[-1])
    assert Path(reply["code"]).is_relative_to(project / "mlartifacts")  # not the package installed here
    for answer, scores in zip(reply["answers"], expected, strict=True):
        assert answer["step_scores"] == pytest.approx(scores.steps.tolist(), abs=1e-5)
        assert answer["score"] == pytest.approx(scores.steps.mean(), abs=1e-5)
        assert answer["first_error"] == -1  # the threshold is out of reach
    assert [code for code, _ in reply["refused"]] == ["INVALID_PARAMETER_VALUE"] * 3
    assert "input 0: 'text' or 'steps'" in reply["refused"][0][1]
    (column,) = reply["schema"]
    assert {name: field["required"] for name, field in column["properties"].items()} == {
        "problem": True, "text": False, "steps": False, "answer": False,
    }  # fmt: skip
