"""The README and docs/: commands parse, links lead somewhere, the README's figures are those of docs/results.md."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from rairl.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NUMBER = r"[+-]?\d+\.\d+"

page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)


def command_lines(path: Path) -> Iterator[str]:
    """The lines of code blocks, continued ones joined; in a block with prompts (``$ ``) only what stands after one."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.S):
        if language in ("", "bash", "sh", "console"):
            lines = block.replace("\\\n", " ").splitlines()
            typed = [line[2:] for line in lines if line.startswith("$ ")]
            yield from typed if language == "console" else lines


def words(line: str, program: str) -> list[str]:
    """The arguments that ``line`` gives to ``program``, or nothing if it doesn't call it."""
    match = re.match(rf"(?:\w+=\$\()?{program} ([^)]*)", line.strip())
    if match is None:
        return []
    given = shlex.split(match[1], comments=True)
    return [word for word in given if word != "&"]


def mistake(given: list[str]) -> str:
    """What the command line would object to; empty when it can read the words. Nothing is run."""
    command = get_command(app)
    while hasattr(command, "commands"):  # a group; typer brings a click of its own, so its classes can't be named here
        name, *given = given or [""]
        if name not in command.commands:
            return f"no such command: {name!r}"
        command = command.commands[name]
    try:
        command.make_context(command.name, given)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return error.format_message()
    return ""


@page
def test_every_command_of_rairl_parses(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_ENDPOINT", "http://localhost:8080")  # as docs/kubernetes.md exports it
    found = {line: mistake(given) for line in command_lines(path) if (given := words(line, "rairl"))}
    assert not {line: told for line, told in found.items() if told}


@pytest.mark.parametrize("line", ["rairl nothing", "rairl plan --gpuz h100", "rairl pipeline nothing", "rairl serve"])
def test_a_command_that_does_not_exist_is_noticed(line: str) -> None:
    assert mistake(words(line, "rairl"))


@page
def test_every_target_of_make_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    inline = re.findall(r"`make ([a-z0-9-]+)", path.read_text(encoding="utf-8"))
    called = {given[0] for line in command_lines(path) if (given := words(line, "make"))}
    assert path.name == "log.md" or called | set(inline) <= targets  # the log also tells of targets that are gone


def anchor(heading: str) -> str:
    """How GitHub names a heading in links."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@page
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        name, _, part = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), f"{path.name}: {link}"
        if part:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert part in map(anchor, headings), f"{path.name}: {link}"


# --- figures ---------------------------------------------------------------------------------------------------------


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def study_row(title: str, label: str) -> dict[str, str]:
    """The row ``label`` (a pattern) of the table ``title`` of the default's study in docs/results.md, by column."""
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    study = text[text.index("<!-- study:default -->") :].split("<!-- end -->")[0]
    lines = study[study.index(f"**{title}") :].split("\n\n")[1].splitlines()
    (row,) = (cells(line) for line in lines[2:] if re.fullmatch(label, cells(line)[0]))
    return dict(zip(cells(lines[0]), row, strict=True))


def mean(title: str, label: str, column: str) -> str:
    """The value of a cell ``value [low, high]``."""
    return study_row(title, label)[column].split()[0]


SIGNAL, RERANKING, LOCALISING = "Training signal", "Reranking, best of 16", "First wrong step"
SHOWN = {  # a row of the README's table: what must stand in its columns
    "pass@1": (
        (SIGNAL, r"R-AIRL \(default\)", "pass@1"),
        (SIGNAL, "SFT", "pass@1"),
        (SIGNAL, "GRPO", "pass@1"),
    ),
    "best of 16": (
        (RERANKING, r"reward \(default\)", "expected accuracy"),
        (RERANKING, r"random \(chance\)", "expected accuracy"),
        (RERANKING, "(?:peer|second model)'s log-probability per token", "expected accuracy"),
    ),
    "first wrong step": (
        (LOCALISING, r"reward \(default\)", "found exactly"),
        (LOCALISING, r"chance \(.*\)", "found exactly"),
        (LOCALISING, "SFT log-probability drop, per token", "found exactly"),
    ),
    "unseen wording": (("Falsification", r"unseen wording \(default\)", "AUROC within question"),),
}


@pytest.mark.parametrize("use", SHOWN)
def test_the_figures_of_the_readme_are_those_of_the_results(use: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("## Results") : text.index("## Limits")]
    (row,) = (cells(line) for line in table.splitlines() if line.startswith("|") and use in line)
    shown = [number for cell in row[1:] for number in re.findall(rf"{NUMBER}\b", cell)]
    expected = [mean(*where) for where in SHOWN[use]]
    assert shown[: len(expected)] == expected
    assert set(shown[len(expected) :]) <= {"0.5"}  # chance of an AUROC


def test_the_readme_has_one_table_of_four_results_and_fits_on_two_screens() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("## Results") : text.index("## Limits")]
    assert len(re.findall(r"^\|", table, re.MULTILINE)) == 2 + len(SHOWN)
    assert text.count("\n") <= 125
