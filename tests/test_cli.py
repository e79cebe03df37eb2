"""The command line as a user meets it: real processes, their messages and exit codes."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import redirect_stderr
from dataclasses import replace
from importlib.metadata import entry_points, metadata
from io import StringIO
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from conftest import FixedReward
from typer.testing import CliRunner

from rairl import __version__
from rairl.core.traces import Trace, write_traces
from rairl.stages.layout import ABOUT, INPUTS, OUTPUTS, STAGES
from rairl.use.apply import choice_figures, localise_rows, location_figures, rerank_rows, score_rows
from rairl.use.review import traces_page
from rairl.use.user_files import read_own

ROOT = Path(__file__).parents[1]
RAIRL = [sys.executable, "-m", "rairl.cli.main"]


def rairl(*words: str | Path, cwd: Path = ROOT, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RAIRL, *map(str, words)], cwd=cwd, capture_output=True, text=True, **more)


def rairl_here(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """The same in this process, where torch is imported already."""
    from rairl.cli.main import _explain, app

    shown = CliRunner().invoke(app, [*map(str, words)])
    if shown.exception is None or isinstance(shown.exception, SystemExit):
        return subprocess.CompletedProcess(words, shown.exit_code, shown.stdout, shown.stderr)
    with redirect_stderr(StringIO()) as explained:
        code = _explain(shown.exception)  # type: ignore[arg-type]
    return subprocess.CompletedProcess(words, code, shown.stdout, shown.stderr + explained.getvalue())


def test_the_package_installs_with_its_entry_point() -> None:
    [script] = entry_points(group="console_scripts", name="rairl")
    assert script.value == "rairl.cli.main:main"
    about = metadata("rairl")
    assert about["Name"] == "rairl"
    assert about["Version"] == __version__
    assert about["License-Expression"] == "Apache-2.0"


def test_help_names_every_command_and_stage() -> None:
    text = rairl("--help").stdout
    for (
        command
    ) in "stage run study params check score rerank localise view serve export promote sync summary ui".split():
        assert f" {command} " in text
    text = rairl("stage", "--help").stdout
    for name in STAGES:
        assert f" {name} " in text
    assert set(ABOUT) == set(STAGES)


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_has_an_option_per_path(name: str) -> None:
    text = rairl("stage", name, "--help", env={**os.environ, "COLUMNS": "200"}).stdout
    for arg in ("params", "root", *INPUTS[name], *OUTPUTS[name]):
        assert f"--{arg.replace('_', '-')} " in text


def test_a_users_mistake_ends_with_a_message_and_code_2(tmp_path: Path) -> None:
    done = rairl("stage", "sft", "--root", tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr
        == f"error: stage sft needs {tmp_path / 'data'}, which does not exist; run `rairl stage prepare` first\n"
    )
    done = rairl("stage", "sft", "--params", tmp_path / "absent.yaml")
    assert done.returncode == 2
    assert "absent.yaml does not exist" in done.stderr
    bad = tmp_path / "bad.yaml"
    bad.write_text((ROOT / "params.yaml").read_text() + "\nsft_epochs: 3\n")
    done = rairl("params", "--check", bad)
    assert done.returncode == 2
    assert "unknown key 'sft_epochs'" in done.stderr
    assert "Traceback" not in done.stderr
    assert rairl("stage", "nonsense").returncode == 2


def test_presets_are_listed_printed_and_valid(tmp_path: Path) -> None:
    listed = rairl("params", check=True)
    assert "dataset: gsm8k, medreason, mmlu_pro" in listed.stderr and "may be left out" in listed.stderr
    names = listed.stdout.split()
    assert names == sorted(path.stem for path in (ROOT / "rairl" / "presets").glob("*.yaml"))
    for name in names:
        done = rairl("params", "--preset", name, check=True)
        (tmp_path / "params.yaml").write_text(done.stdout)
        assert "is valid" in rairl("params", "--check", tmp_path / "params.yaml", check=True).stderr
    done = rairl("params", "--preset", "nonsense")
    assert done.returncode == 2
    assert "preset 'nonsense' is unknown" in done.stderr


def test_summary_and_ui_say_what_is_missing(tmp_path: Path) -> None:
    done = rairl("summary", cwd=tmp_path)
    assert done.returncode == 2
    assert "metrics.json does not exist" in done.stderr
    done = rairl("ui", cwd=tmp_path)
    assert done.returncode == 2
    assert "mlflow.db does not exist" in done.stderr
    done = rairl("ui", cwd=tmp_path, env={**os.environ, "MLFLOW_TRACKING_URI": "http://tracking.example"})
    assert done.returncode == 0
    assert "http://tracking.example" in done.stdout


# --- the reward on a user's own traces --------------------------------------------------------------------------------


def own(key: str, reads: list[float], **more: Any) -> Trace:
    text = "\n".join(f"step {number}" for number in range(len(reads)))
    row = {"id": key, "problem": "p", "text": text, "steps": text.split("\n"), "meta": {"reads": reads}, **more}
    return Trace.from_json(row)


def test_score_rows() -> None:
    [row] = score_rows([own("a", [1.0, 3.0], group="q")], FixedReward())  # type: ignore[arg-type]
    assert row == {
        "id": "a",
        "group": "q",
        "score": 2.0,
        "steps": [{"text": "step 0", "score": 1.0}, {"text": "step 1", "score": 3.0}],
    }


def test_rerank_rows_and_accuracy() -> None:
    traces = [
        own("a1", [0.0, 1.0], group="a", answer="5", correct=False),
        own("b1", [2.0, 2.0], group="b", answer="7", correct=True),
        own("a2", [1.0, 1.0], group="a", answer="6", correct=True),
        own("c1", [0.0, 0.0], group="c"),
    ]
    rows = list(rerank_rows(traces, FixedReward()))  # type: ignore[arg-type]
    assert rows[0] == {
        "group": "a",
        "best": "a2",
        "answer": "6",
        "vote": "6",
        "ranking": [{"id": "a2", "score": 1.0}, {"id": "a1", "score": 0.5}],
    }
    assert [row["best"] for row in rows] == ["a2", "b1", "c1"]
    assert rows[2]["vote"] is None
    figures = choice_figures(traces, rows, FixedReward.calibration)
    values = {name: figure.value for name, figure in figures.items()}
    assert values == {
        "reward": 1, "reward_vote": 1, "majority": 0.75, "shortest": 0.75, "random": 0.75, "oracle": 1, "auroc": 1,
        "reward-reward_vote": 0, "reward-majority": 0.25, "reward-shortest": 0.25, "reward-random": 0.25,
    }  # fmt: skip
    assert figures["reward"].n == 2, "the question that nobody has judged is left out"
    assert choice_figures(traces[3:], rows[2:], FixedReward.calibration) == {}


def test_the_weighted_vote_of_rows() -> None:
    # 2 / T = 1: 7 has exp(0) votes, 1,000 has exp(-1) + exp(-1.2), in the words of its better candidate.
    model = FixedReward()
    model.calibration = replace(model.calibration, temperatures={"mean": 2.0})
    reads = {"a": ("7", 3.0), "b": ("1,000", 1.0), "c": ("1000", 0.6), "d": (None, 9.0)}
    traces = [own(key, [read], group="q", answer=answer) for key, (answer, read) in reads.items()]
    [row] = rerank_rows(traces[:3], model)  # type: ignore[arg-type]
    assert (row["answer"], row["vote"]) == ("7", "7")
    model.calibration = replace(model.calibration, temperatures={"mean": 5.0})
    [row] = rerank_rows(traces, model)  # type: ignore[arg-type]
    assert (row["answer"], row["vote"]) == (None, "1,000")


def test_localise_rows() -> None:
    # increments from the prior 0: (2, -1, -3) and (1, 0)
    wrong, right = localise_rows([own("a", [2.0, 1.0, -2.0]), own("b", [1.0, 1.0])], FixedReward())  # type: ignore[arg-type]
    assert wrong.pop("score") == pytest.approx(1 / 3)
    assert wrong == {"id": "a", "suspect": 2, "suspect_text": "step 2", "first_error": 2, "steps": [2.0, 1.0, -2.0]}
    assert (right["suspect"], right["first_error"]) == (1, None)
    [blank] = localise_rows([Trace(id="c", problem="p", text=" ", meta={"reads": [0.0]})], FixedReward())  # type: ignore[arg-type]
    assert blank == {"id": "c", "score": 0.0, "suspect": None, "suspect_text": None, "first_error": None, "steps": []}


def test_location_figures_by_hand() -> None:
    traces = [
        own("a", [2.0, 1.0, -2.0], first_error=2),
        own("b", [2.0, 1.0, -2.0], first_error=0),
        own("c", [1.0, 1.0], labelled=True),
        own("d", [1.0, 1.0]),
    ]
    rows = list(localise_rows(traces, FixedReward()))  # type: ignore[arg-type]
    values = {name: f.value for name, f in location_figures(traces, rows, "drop", draws=100).items()}
    assert values["reward.exact"] == values["first.exact"] == values["last.exact"] == 0.5
    assert values["chance.exact"] == pytest.approx(1 / 3)
    assert values["reward-first.exact"] == 0
    assert (values["reward.acc_error"], values["reward.acc_correct"]) == (0.5, 1)
    assert values["reward.f1"] == pytest.approx(2 / 3)
    assert values["reward.step_auc"] == 1, "in a the error is below both steps before it; b has none before"
    assert location_figures(traces[3:], rows[3:], "drop") == {}


def test_own_traces_become_a_page() -> None:
    traces = [
        own("a", [2.0, -2.0], first_error=1, correct=False, gold="7"),
        own("b", [3.0, 1.0], correct=True),
        own("</script>", [3.0], problem="other"),
    ]
    rows = list(localise_rows(traces, FixedReward()))  # type: ignore[arg-type]
    page = traces_page(traces, rows, "drop", "mine <b>.jsonl")
    assert "mine &lt;b&gt;.jsonl" in page and not re.search(r"https?://|@import|url\(", page)
    shown = json.loads(re.search(r'id="traces-json">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    assert [(row["id"], row["kind"], row["correct"]) for row in shown] == [
        ("a", "located", False), ("b", "right", True), ("</script>", "open", None),
    ]  # fmt: skip
    assert (shown[0]["predicted"], shown[0]["first_error"], shown[0]["place"]) == (1, 1, 2)


def test_steps_are_found_where_they_are_not_given(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    rows = [
        {"id": "tags", "problem": "p", "text": "<think>\none\ntwo\n</think>\n<answer>\n2\n</answer>"},
        {"id": "lines", "problem": "p", "text": "one\ntwo"},
        {"id": "sentences", "problem": "p", "text": "It is one. So it is two."},
        {"id": "given", "problem": "p", "text": "one two", "steps": [[0, 7]]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [trace.step_texts() for trace in read_own(path).traces] == [
        ["one", "two"],
        ["one", "two"],
        ["It is one.", "So it is two."],
        ["one two"],
    ]


def test_answers_are_read_and_judged_where_they_are_not_given(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    rows = [
        {"id": "right", "problem": "p", "text": "one\n#### 12", "gold": "12"},
        {"id": "wrong", "problem": "p", "text": "one\n#### 13", "gold": "12"},
        {"id": "told", "problem": "p", "text": "one\n#### 13", "gold": "12", "correct": True, "answer": "a dozen"},
        {"id": "open", "problem": "p", "text": "one"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(trace.answer, trace.correct) for trace in read_own(path).traces] == [
        ("12", True),
        ("13", False),
        ("a dozen", True),
        (None, None),
    ]


@pytest.mark.parametrize("command", ["score", "rerank", "localise"])
def test_own_files_are_checked_before_the_model_is_loaded(tmp_path: Path, command: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"id": "a", "problem": "p", "text": "x"}\n{"id": "b", "problem": "p", "txt": "x"}\n')
    done = rairl_here(command, path, "--reward", tmp_path)
    assert done.returncode == 2
    assert f"{path}, line 2: field 'txt' is unknown" in done.stderr
    done = rairl_here(command, path, "--reward", tmp_path, "--skip-bad")
    assert done.returncode == 2
    assert f"left out: {path}, line 2" in done.stderr
    assert f"{tmp_path} holds no reward model" in done.stderr
    write_traces(path, [Trace(id="a", problem="p")])
    done = rairl_here(command, path, "--reward", tmp_path)
    assert done.returncode == 2
    assert f"{path}, line 1: field 'text': trace 'a' has no 'text'" in done.stderr


def test_scores_of_a_long_file_and_of_a_pipe(
    tmp_path: Path, tiny_policy: Path, miniature: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from rairl.cli import user_files as cli
    from rairl.models.reward import RewardModel, new_reward

    new_reward(tiny_policy, miniature.reward, seed=0).save_pretrained(tmp_path / "reward")
    path, pipe, out = tmp_path / "own.jsonl", tmp_path / "pipe", tmp_path / "scores.jsonl"
    rows = [{"id": str(at), "problem": "p", "text": "x " * (900 if at == 3 else 1 + at)} for at in range(7)]
    text = "{\n" + "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text)
    monkeypatch.setattr(cli, "PIECE", 2)
    cli.score(path, str(tmp_path / "reward"), out, skip_bad=True, form="auto")
    said = capsys.readouterr().err
    assert said.count("left out: ") == 2
    assert f"left out: {path}, line 1: not valid JSON" in said and f"{path}, line 5: trace '3' has" in said
    assert "left out 2 of 8 lines" in said and f"{path}: 6 traces in the format rairl" in said
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["0", "1", "2", "4", "5", "6"]

    os.mkfifo(pipe)
    Thread(target=pipe.write_text, args=(text,), daemon=True).start()
    cli.score(pipe, str(tmp_path / "reward"), None, skip_bad=True, form="auto")
    printed = capsys.readouterr().out.splitlines()
    piped, filed = ([json.loads(line)["score"] for line in lines] for lines in (printed, out.read_text().splitlines()))
    assert piped == pytest.approx(filed, abs=1e-5)

    out.write_text("old")
    monkeypatch.setattr(RewardModel, "step_logits", lambda *args, **options: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cli.score(path, str(tmp_path / "reward"), out, skip_bad=True, form="auto")
    assert out.read_text() == "old" and not list(tmp_path.glob("*.part"))


def test_what_is_skipped_is_counted_and_what_is_too_long_is_named(
    tmp_path: Path, tiny_policy: Path, miniature: Any
) -> None:
    from rairl.models.reward import new_reward

    new_reward(tiny_policy, miniature.reward, seed=0).calibrated(threshold=0.0).save_pretrained(tmp_path / "reward")
    path, page = tmp_path / "own.jsonl", tmp_path / "out" / "page.html"
    rows = [
        {"id": "a", "problem": "p", "steps": ["one", "two"], "first_error": 1},
        {"id": "b", "problem": "p", "text": "x " * 900},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    words = ["localise", path, "--reward", tmp_path / "reward", "-o", tmp_path / "rows.jsonl", "--html", page]
    done = rairl_here(*words, "--skip-bad")
    assert done.returncode == 0, done.stderr
    assert f"left out: {path}, line 3: not valid JSON" in done.stderr
    assert f"left out: {path}, line 2: trace 'b' has" in done.stderr
    assert "left out 2 of 3 lines" in done.stderr
    assert "first wrong step of 1 wrong traces, exact:" in done.stderr
    assert [json.loads(line)["id"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == ["a"]
    assert '"id": "a"' in page.read_text()
    path.write_text(json.dumps(rows[1]) + "\n")
    done = rairl_here(*words)
    assert done.returncode == 2
    assert f"{path}, line 1: trace 'b' has" in done.stderr and "reads at most" in done.stderr


# --- when it is stopped, or cannot go on ------------------------------------------------------------------------------


STAGE = """
    import sys, time
    from types import ModuleType
    import rairl.cli.main

    def prepare(params, run, *, data):
        data.mkdir()
        (data / "half").write_text("half")
        {body}

    module = ModuleType("rairl.stages.prepare")
    module.prepare = prepare
    sys.modules["rairl.stages.prepare"] = module
    rairl.cli.main.main()
"""


def in_place_of_prepare(body: str, folder: Path) -> list[str]:
    """Command that runs stage prepare with another body; finished data is there already."""
    (folder / "data").mkdir()
    (folder / "data" / "demos.jsonl").write_text("finished")
    code = textwrap.dedent(STAGE).replace("{body}", body)
    params = ROOT / "tests" / "miniature.yaml"
    return [sys.executable, "-c", code, "stage", "prepare", "--root", str(folder), "--params", str(params)]


def started(command: list[str], **how: Any) -> subprocess.Popen[str]:
    """The command in a process that hears Ctrl-C, also where the tests run in the background and ignore it."""
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **how,
    )


def kept(folder: Path) -> bool:
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in files if not name.startswith((".rairl/", "mlflow.db", "mlartifacts"))} == {
        "data/demos.jsonl"
    }


@pytest.fixture
def quiet_tracking() -> dict[str, str]:
    """A tracking address that refuses at once: the store's own set-up would take seconds."""
    return {**os.environ, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


def test_an_interrupt_keeps_what_is_finished(tmp_path: Path, quiet_tracking: dict[str, str]) -> None:
    command = in_place_of_prepare("print('started', flush=True); time.sleep(60)", tmp_path)
    process = started(command, env=quiet_tracking, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; finished stages are kept; run the same command again to resume" in told
    assert "Traceback" not in told
    assert kept(tmp_path)


def test_an_interrupted_real_stage_keeps_what_is_finished(tmp_path: Path, quiet_tracking: dict[str, str]) -> None:
    params = ROOT / "tests" / "miniature.yaml"
    rairl("stage", "prepare", "--root", tmp_path, "--params", params, env=quiet_tracking, check=True)
    long = tmp_path / "long.yaml"
    long.write_text(params.read_text().replace("corpus: 400", "corpus: 400000"))
    command = [*RAIRL, "stage", "base", "--root", str(tmp_path), "--params", str(long)]
    process = started(command, cwd=tmp_path, env=quiet_tracking)
    deadline = time.monotonic() + 200
    while not list((tmp_path / "models").glob(".part-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    # Interrupted while a C extension runs Python, CPython ends itself by the signal; a shell says 130 to both.
    assert process.returncode in (130, -signal.SIGINT), told
    assert "interrupted" in told
    assert (tmp_path / "data" / "demos.jsonl").exists()
    assert (tmp_path / "metrics" / "prepare.json").exists()
    assert list((tmp_path / "models").iterdir()) == []


def test_a_full_device_is_named(tmp_path: Path, quiet_tracking: dict[str, str]) -> None:
    if not Path("/dev/full").is_char_device():
        pytest.skip("/dev/full exists on Linux only")
    command = in_place_of_prepare("open('/dev/full', 'wb', buffering=0).write(b'x')", tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, env=quiet_tracking)
    assert done.returncode == 1
    assert "error: the disk is full; finished stages are kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert kept(tmp_path)


@pytest.mark.parametrize(
    "body",
    [
        "(data / 'x').write_bytes(bytes(2_000_000))",
        "import torch; torch.save({'a': torch.zeros(500_000)}, data / 'x')",
        "import torch, safetensors.torch as s; s.save_file({'a': torch.zeros(500_000)}, data / 'x')",
    ],
    ids=["file", "torch", "safetensors"],
)
def test_a_full_disk_is_named(tmp_path: Path, quiet_tracking: dict[str, str], body: str) -> None:
    mount = f"mount -t tmpfs -o size=1m none {tmp_path}"
    probe = ["unshare", "-rm", "sh", "-c", mount]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    small = tmp_path / "small"
    small.mkdir()
    command = shlex.join(in_place_of_prepare(body, small))
    script = (
        f"cp -r {small} {small}.files && mount -t tmpfs -o size=1m none {small} && cp -r {small}.files/. {small} && "
    )
    done = subprocess.run(
        [
            "unshare",
            "-rm",
            "sh",
            "-c",
            f"{script} {command}; echo $?; find {small} -name .rairl -prune -o -type f -print",
        ],
        capture_output=True,
        text=True,
        env=quiet_tracking,
    )
    assert "error: the disk is full; finished stages are kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.split() == ["1", f"{small}/data/demos.jsonl"]


def test_a_bug_shows_its_traceback(tmp_path: Path, quiet_tracking: dict[str, str]) -> None:
    done = subprocess.run(in_place_of_prepare("1 / 0", tmp_path), capture_output=True, text=True, env=quiet_tracking)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert kept(tmp_path)
