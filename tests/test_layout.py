"""The list of stages and paths is consistent in itself and with the stage functions; the runner keeps its promises."""

from __future__ import annotations

import inspect
import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.core.stats import Estimate, exact
from rairl.stages.layout import INPUTS, OUTPUTS, STAGES, producer, stage_paths
from rairl.stages.runner import code_digest, input_files_digest, run_all, run_stage, write_figures
from rairl.tracking.run import Run


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_function_takes_exactly_the_paths_of_the_layout(name: str) -> None:
    function = getattr(import_module(f"rairl.stages.{name}"), name)
    positional, keywords = [], {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            keywords[parameter.name] = parameter.annotation
        else:
            positional.append(parameter.name)
    assert positional == ["params", "run"]
    assert set(keywords) == (set(INPUTS[name]) | set(OUTPUTS[name])) - {"metrics"}
    assert set(keywords.values()) <= {"Path", Path}
    assert function.__doc__


def test_no_argument_is_input_and_output_at_once_and_no_path_is_written_twice() -> None:
    for name in STAGES:
        assert not set(INPUTS[name]) & set(OUTPUTS[name])
    written = [path for name in STAGES for path in OUTPUTS[name].values()]
    assert len(written) == len(set(written))


def test_every_input_is_made_by_an_earlier_stage() -> None:
    for number, name in enumerate(STAGES):
        for path in INPUTS[name].values():
            assert producer(path) in STAGES[:number]


def test_paths_default_under_root_and_can_be_replaced(tmp_path: Path) -> None:
    inputs, outputs = stage_paths("sft", root=tmp_path, base="elsewhere")
    assert inputs == {"data": tmp_path / "data", "base": Path("elsewhere")}
    assert outputs == {
        "model": tmp_path / "models/sft",
        "last": tmp_path / "models/sft_last",
        "metrics": tmp_path / "metrics/sft.json",
    }


def test_an_unknown_stage_or_path_is_named() -> None:
    with pytest.raises(RairlError, match="unknown stage 'sftt'"):
        stage_paths("sftt")
    with pytest.raises(RairlError, match="stage sft has no path 'policy'"):
        stage_paths("sft", policy="x")


def test_a_missing_input_names_the_stage_to_run_first(tmp_path: Path, miniature: Params) -> None:
    with pytest.raises(RairlError, match="rairl stage prepare"):
        run_stage("sft", miniature, root=tmp_path)


def test_figures_are_written_whole(tmp_path: Path) -> None:
    write_figures(tmp_path / "m.json", {"b": Estimate(0.5, 0.25, 0.75, 4), "a": exact(2)})
    rows = json.loads((tmp_path / "m.json").read_text())
    assert rows == {
        "a": {"value": 2.0, "low": 2.0, "high": 2.0, "n": 1},
        "b": {"value": 0.5, "low": 0.25, "high": 0.75, "n": 4},
    }
    assert [path.name for path in tmp_path.iterdir()] == ["m.json"]


# --- the runner, with a stage of the test's own in place of a real one ------------------------------------------------


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a function in the place of stage prepare, and a tracking run that does nothing."""
    from contextlib import contextmanager

    @contextmanager
    def stage_run(*_: Any, **__: Any) -> Any:
        yield Run()

    monkeypatch.setattr("rairl.tracking.run.stage_run", stage_run)

    def use(function: Any, name: str = "prepare") -> None:
        module = ModuleType(f"rairl.stages.{name}")
        setattr(module, name, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return use


def test_outputs_replace_the_old_ones_whole(tmp_path: Path, miniature: Params, stage: Any) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "old").write_text("old")

    def prepare(params: Params, run: Any, *, data: Path) -> dict[str, Estimate]:
        data.mkdir()
        (data / "new").write_text("new")
        return {"prepare.rows": exact(1), "prepare.unknown": exact(float("nan"))}

    stage(prepare)
    figures = run_stage("prepare", miniature, root=tmp_path)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["new"]
    assert set(figures) == {"prepare.rows", "time.prepare"}
    assert set(json.loads((tmp_path / "metrics/prepare.json").read_text())) == set(figures)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "metrics"]


@pytest.mark.parametrize("failure", [RairlError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_stage_that_fails_leaves_what_was_there(
    tmp_path: Path, miniature: Params, stage: Any, failure: BaseException
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "old").write_text("old")

    def prepare(params: Params, run: Any, *, data: Path) -> dict[str, Estimate]:
        data.mkdir()
        (data / "half").write_text("half")
        raise failure

    stage(prepare)
    with pytest.raises(type(failure)):
        run_stage("prepare", miniature, root=tmp_path)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["old"]
    assert not (tmp_path / "metrics/prepare.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "metrics"]


def test_a_whole_run_resumes_after_the_last_finished_stage(
    tmp_path: Path, miniature: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    stop_at = "grpo"

    def fake(name: str, params: Params, *, root: Path) -> dict[str, Estimate]:
        calls.append(name)
        if name == stop_at:
            raise KeyboardInterrupt
        for path in stage_paths(name, root=root)[1].values():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return {f"time.{name}": exact(0)}

    monkeypatch.setattr("rairl.stages.runner.run_stage", fake)
    with pytest.raises(KeyboardInterrupt):
        run_all(miniature, root=tmp_path)
    assert calls == ["prepare", "base", "sft", "second_model", "grpo"]
    stop_at, calls[:] = "", []
    run_all(miniature, root=tmp_path)
    assert calls == list(STAGES[4:])
    calls.clear()
    run_all(miniature, root=tmp_path)
    assert calls == []
    (tmp_path / "candidates").unlink()
    run_all(miniature, root=tmp_path)
    assert calls == list(STAGES[6:])
    calls.clear()
    run_all(miniature.model_copy(update={"seed": 1}), root=tmp_path)
    assert calls == list(STAGES)


def test_the_digest_of_input_files_sees_their_content(tmp_path: Path, miniature: Params) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    own = miniature.model_copy(update={"base": miniature.base.model_copy(update={"source": str(folder)})})
    before = input_files_digest(own)
    (folder / "config.json").write_text("[]")
    assert input_files_digest(own) != before
    assert input_files_digest(miniature) == input_files_digest(miniature)
    assert len(code_digest()) == 12
