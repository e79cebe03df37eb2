"""What a user is told of a file of demonstrations before anything is trained on it."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import in_environment, make_clone
from typer.testing import CliRunner, Result

from rairl.cli.main import app
from rairl.core.errors import RairlError
from rairl.core.params import Params, load_params, parse_params
from rairl.core.traces import read_traces
from rairl.preflight.check_data import Findings, check, section, split
from rairl.stages.prepare import prepare
from rairl.tracking.run import Run

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs" / "examples" / "gsm8k.jsonl"
MINIATURE = ROOT / "tests" / "miniature.yaml"


def row(number: int, **more: Any) -> dict[str, Any]:
    return {
        "id": f"q{number}",
        "problem": f"How many are {number} and 2?",
        "text": f"{number} + 2 = {number + 2}.\nSo it is that.\n#### {number + 2}",
        **more,
    }


@pytest.fixture
def look(tmp_path: Path) -> Any:
    """Findings of a file with these rows (or lines)."""

    def write(*rows: dict[str, Any] | str) -> Findings:
        path = tmp_path / "mine.jsonl"
        path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in rows) + "\n")
        return check(path)

    return write


def told(found: Findings, words: str) -> bool:
    return any(words in line for line in [*found.facts, *found.problems, *found.refused])


def test_a_sound_file(look: Any) -> None:
    found = look(*(row(number) for number in range(120)))
    assert found.problems == [] and found.refused == []
    assert found.facts[0] == "120 rows, 120 usable, about 120 problems"
    assert told(found, "steps: 2.0 on average (2 to 2) a solution (by lines in 120)")
    assert told(found, "120 from the text")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text": "It is 3.\n#### 3"}, "1 solution (q0) of a single step"),
        ({"gold": "99"}, "whose answer is not its own 'gold'"),
        ({"text": "a\nb\n<answer>" + "long " * 20 + "</answer>"}, "more than 60 characters"),
        ({"text": "1 + 1 = <<1+1=2>>2\nso\n#### 2"}, "calculator annotations"),
        ({"text": "<|im_start|>a\nb\n#### 2"}, "chat markers"),
        ({"problem": "a<br>b?"}, "HTML tags"),
        ({"text": "cafÃ© is\n2\n#### 2"}, "wrong encoding"),
        ({"text": "a\x07\nb\n#### 2"}, "control characters"),
        ({"problem": "Сколько будет?", "text": "Это два и два.\nИтого четыре.\n#### 4"}, "(Latin 1, Cyrillic 1)"),
        ({"problem": row(1)["problem"], "text": row(1)["text"]}, "1 rows repeat another row's problem and solution"),
        ({"problem": row(1)["problem"]}, "1 problems have more than one solution"),
        ({"text": "a\nb"}, "has no answer; add a field 'answer' or 'gold'"),
        ({"text": ""}, "has no text"),
        ({"id": "q1"}, "already occurs"),
        ({"extra": 1}, "'extra' is unknown; put extra values under 'meta'"),
        ({"text": 7}, "field 'text' must be of type str"),
    ],
)
def test_what_is_wrong_is_said_in_words(look: Any, change: dict[str, Any], words: str) -> None:
    assert not told(look(row(0), row(1)), words)
    assert told(look(row(1), row(0, **change)), words)


def test_other_names_for_our_fields_are_recognised(look: Any) -> None:
    found = look(*({"idx": n, "question": "q", "solution": "a\nb"} for n in range(3)))
    assert found.traces == [] and len(found.refused) == 3
    for theirs, ours in (("idx", "id"), ("question", "problem"), ("solution", "text")):
        assert told(found, f"no row has the field {ours!r}; {theirs!r} is probably meant")
    assert told(look({"messages": []}), "the rows are conversations")


def test_files_that_are_no_json_lines(tmp_path: Path, look: Any) -> None:
    with pytest.raises(RairlError, match=r"one JSON array; .* jq -c"):
        look("[", json.dumps(row(0)), "]")
    with pytest.raises(RairlError, match=r"holds no JSON object \(2 lines\)"):
        look("id,problem,text", "1,2,3")
    with pytest.raises(RairlError, match="does not exist"):
        check(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes("é".encode("latin-1"))
    with pytest.raises(RairlError, match="is not UTF-8"):
        check(tmp_path / "latin.jsonl")
    assert told(look(row(0), "{", row(1)), "line 2: not valid JSON")


def test_lengths_in_the_models_own_tokens(tmp_path: Path, tiny_policy: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(row(0)) + "\n" + json.dumps(row(1, text="1 + 1 = 2\n" * 200 + "#### 2")) + "\n")
    found = check(path, tiny_policy)
    assert told(found, f"{tiny_policy} reads 400 with the problem")
    assert told(found, "1 solution (q1) longer than the 400 tokens")
    with pytest.raises(RairlError, match=r"config\.json is missing"):
        check(path, tmp_path)


# --- the worked example of the documentation --------------------------------------------------------------------------


def ask(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["check", *map(str, words)])


def test_the_example_from_the_file_to_prepared_data(tmp_path: Path, miniature: Params) -> None:
    first = ask(EXAMPLE)
    assert first.exit_code == 0 and "59 solutions (train-0, train-1, train-2, …) with calculator" in first.output
    clean = tmp_path / "demos.jsonl"
    lines = EXAMPLE.read_text().split("\n")
    clean.write_text("\n".join("".join(part.split(">>", 1)[-1] for part in line.split("<<")) for line in lines))
    done = ask(clean, "--split", tmp_path / "mine")
    assert done.exit_code == 0, done.output
    assert "calculator" not in done.output
    assert f"wrote {tmp_path / 'mine'}: demos 48, dev 6, prompts 48, test 6" in done.output
    printed = yaml.safe_load(done.output[done.output.index("dataset:") :])
    values = miniature.model_dump()
    values["dataset"] = printed["dataset"]
    values["policy"] |= printed["policy"]
    prepare(parse_params(values), Run(), data=tmp_path / "data")
    assert len(read_traces(tmp_path / "data" / "demos.jsonl")) == 48
    longest = max(len(trace.text) for trace in read_traces(tmp_path / "data" / "demos.jsonl"))
    assert printed["policy"]["max_new_tokens"] > longest / 4
    mine = tmp_path / "mine.yaml"
    written = ask(clean, "--split", tmp_path / "mine", "--params", MINIATURE, "-o", mine)
    assert written.exit_code == 0, written.output
    assert load_params(mine) == parse_params(values)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_example_from_the_file_to_a_served_reward(tmp_path: Path) -> None:
    """The commands of docs/own-demonstrations.md, in their order."""
    page = (ROOT / "docs" / "own-demonstrations.md").read_text()
    shown = page[page.index("## From a file to a served reward") :].split("```")[1].replace("\\\n", " ")
    commands = [line.removeprefix("$ ") for line in shown.splitlines() if line.startswith("$ ")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ready = f"trap 'kill $!' EXIT\nuntil curl -sf localhost:{port}/health; do kill -0 $!; sleep 1; done"
    script = "\n".join(["set -e", *commands]).replace(" &\n", f" &\n{ready}\n").replace("8080", port)
    clone = make_clone(tmp_path / "clone")
    done = subprocess.run(["bash", "-c", script], cwd=clone, env=in_environment(clone), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    verdicts = json.loads(done.stdout.splitlines()[-1].removeprefix('{"status":"ok"}'))["predictions"]
    assert [verdict.keys() for verdict in verdicts] == [{"step_scores", "score", "first_error", "rank"}]


def test_a_whole_file_of_parameters_needs_a_valid_one_to_start_from(tmp_path: Path) -> None:
    done = ask(EXAMPLE, "--params", tmp_path / "none.yaml", "-o", tmp_path / "mine.yaml")
    assert done.exit_code == 1 and "none.yaml does not exist" in str(done.exception)
    assert not (tmp_path / "mine.yaml").exists()


def test_a_file_that_prepare_would_refuse_ends_with_1(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row(n, text="no answer\nhere") if n == 1 else row(n)) for n in range(3)))
    done = ask(path)
    assert done.exit_code == 1
    assert "`prepare` would stop at:\n  - " in done.output and "'q1' has no answer" in done.output


def test_a_mixed_number_is_written_as_gold_by_its_value(look: Any, tmp_path: Path) -> None:
    split(look(*(row(n, text="a\nb\nSo \\boxed{1\\frac{1}{2}}.") for n in range(10))), tmp_path / "mine")
    golds = {trace.gold for name in ("prompts", "test") for trace in read_traces(tmp_path / "mine" / f"{name}.jsonl")}
    assert golds == {"1.5"}


def test_too_few_problems_are_not_split(look: Any, tmp_path: Path) -> None:
    found = look(*(row(number) for number in range(9)))
    with pytest.raises(RairlError, match="9 usable problems can't be split"):
        split(found, tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_a_split_keeps_the_solutions_of_a_problem_together(look: Any, tmp_path: Path) -> None:
    rows = [row(number % 20, id=f"{number}", text=f"{number}\nso\n#### {number % 20 + 2}") for number in range(60)]
    counts = split(look(*rows), tmp_path / "mine")
    assert counts == {"demos": 48, "dev": 6, "prompts": 16, "test": 2}
    problems = {
        name: {trace.problem for trace in read_traces(tmp_path / "mine" / f"{name}.jsonl")}
        for name in ("demos", "dev", "test", "prompts")
    }
    assert not problems["demos"] & problems["dev"] and not problems["demos"] & problems["test"]
    assert problems["prompts"] == problems["demos"]
    assert all(trace.gold and not trace.text for trace in read_traces(tmp_path / "mine" / "test.jsonl"))


def test_the_section_names_the_files_that_are_still_to_come() -> None:
    values = section(Findings(new_tokens=7), Path("a b/demos.jsonl"), None)
    assert values["dataset"] == {
        "name": "file", "demos": "a b/demos.jsonl", "prompts": "a b/prompts.jsonl", "dev": "a b/dev.jsonl",
        "test": "a b/test.jsonl",
    }  # fmt: skip
    assert values["policy"] == {"max_new_tokens": 7}
