"""The evaluation stages one after the other on real (tiny, untrained) models, and the report they end in.

The candidates are written by the benchmark's authors with bad habits, so the oracle's labels on them are real ones.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from rairl.core.errors import RairlError
from rairl.core.params import Params, parse_params
from rairl.core.stats import Estimate, exact, to_json
from rairl.core.traces import Trace, relabel, write_traces
from rairl.datasets import arithmetic, arithmetic_problem
from rairl.evaluate.candidates import POLICIES, candidates_path
from rairl.evaluate.likelihood import likelihoods, write_likelihoods
from rairl.evaluate.questions import read_questions
from rairl.evaluate.scores import Saved, read_scores
from rairl.evaluate.shortcuts import FALSIFIED, NOT_SUPPORTED, NOT_TESTED, SUPPORTED
from rairl.evaluate.trace_edits import HIDDEN
from rairl.evaluate.variants import VARIANTS
from rairl.models.calibration import AGGREGATORS
from rairl.models.reward import RewardModel, new_reward
from rairl.report import labels
from rairl.report.claims import RERANKING, adjusted, claims, difference_verdict, p_value
from rairl.report.page import embed_json
from rairl.report.tables import cell, summary_table, tables
from rairl.report.viewer import viewer_rows
from rairl.stages.audit import audit
from rairl.stages.layout import INPUTS, OUTPUTS
from rairl.stages.localise import localise
from rairl.stages.posttrain import posttrain
from rairl.stages.report import merge_metrics, report
from rairl.stages.rerank import rerank
from rairl.stages.runner import write_figures
from rairl.text.answers import answers_match
from rairl.text.segment import think_lines
from rairl.tracking.run import NullRun
from rairl.use.apply import choice_figures, localise_rows, location_figures, rerank_rows
from rairl.use.user_files import read_own

ROOT = Path(__file__).parents[1]
STAGES = {"posttrain": posttrain, "rerank": rerank, "localise": localise, "audit": audit, "report": report}


@dataclass
class Finished:
    """A folder in which every evaluation stage has run."""

    root: Path
    params: Params
    figures: dict[str, dict[str, Estimate]]

    def run(self, stage: str, **changes: Path) -> dict[str, Estimate]:
        """Run one stage on the default paths, some of them changed."""
        layout = {**INPUTS[stage], **{arg: path for arg, path in OUTPUTS[stage].items() if arg != "metrics"}}
        paths = {arg: self.root / path for arg, path in layout.items()} | changes
        return STAGES[stage](self.params, NullRun(), **paths)


def write_candidates(problem: Trace, policy: str, count: int) -> list[Trace]:
    """What ``count`` authors make of a problem, judged and labelled as the sample stage does it."""
    rng = random.Random(f"{policy}/{problem.id}")
    found = []
    for number in range(count):
        steps, answer = arithmetic.habitual_steps(
            arithmetic_problem.parse(problem.problem),
            rng.choice([frozenset(), arithmetic.author(rng, "fewer_as_more")]),
        )
        text = arithmetic_problem.completion(steps, answer)
        found.append(
            Trace(
                f"{problem.id}/{number}", problem.problem, text, think_lines(text), str(answer), problem.gold,
                answers_match(str(answer), problem.gold or ""),
                arithmetic_problem.first_error(problem.problem, steps), True,
                f"policy:{policy}", problem.id,
            )
        )  # fmt: skip
    return found


def keep_candidates(traces: list[Trace], root: Path, policy: str, split: str) -> None:
    """Write candidates and their likelihoods as the sample stage does."""
    pairs = likelihoods(traces, **{name: root / "models" / name for name in MODELS})
    meta = [{"logprob": pair.sft.total, "tokens": pair.sft.tokens, "finished": True} for pair in pairs]
    traces = [relabel(trace, meta=found) for trace, found in zip(traces, meta, strict=True)]
    write_traces(candidates_path(root / "candidates", policy, split), traces)
    write_likelihoods(root / "candidates", policy, split, traces, pairs)


MODELS = ("sft", "base", "second_model")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    from rairl.models.base import new_model, train_tokenizer
    from rairl.models.policy import save_policy

    root = tmp_path_factory.mktemp("run")
    params = parse_params(yaml.safe_load((ROOT / "tests" / "miniature.yaml").read_text()))
    splits = arithmetic.build(params.dataset, params.seed)
    for name, traces in splits.items():
        write_traces(root / "data" / f"{name}.jsonl", traces)
    rows = {name: {"rows": len(traces), "sources": ["expert"], "sha256": "0" * 64} for name, traces in splits.items()}
    card = {"dataset": {"name": "arithmetic"}, "splits": rows, "shared_problems": {"demos/test": 0}, "notes": {}}
    (root / "data" / "card.json").write_text(json.dumps(card))

    tokenizer = train_tokenizer([trace.problem + trace.text for trace in splits["demos"]], params.base.vocab_size)
    for seed, name in enumerate(MODELS):
        save_policy(root / "models" / name, new_model(params.base, tokenizer, max_tokens=512, seed=seed), tokenizer)
    model = new_reward(root / "models/sft", params.reward, seed=0).calibrated(
        aggregator="mean", threshold=-0.05, temperatures={"mean": 2.0}, slope=1.0, intercept=-0.5, base=0.3
    )
    model.save_pretrained(root / "models/reward")

    for name in POLICIES:
        for split in ("test", *arithmetic.OUT_OF_RANGE):
            traces = [trace for problem in splits[split] for trace in write_candidates(problem, name, 4)]
            keep_candidates(traces, root, name, split)
        greedy = [trace for problem in splits["test"] for trace in write_candidates(problem, f"{name}-greedy", 1)]
        write_traces(candidates_path(root / "candidates", name, "test", "greedy"), greedy)
        colder = [trace for problem in splits["test"] for trace in write_candidates(problem, f"{name}-colder", 2)]
        colder = [relabel(trace, meta={"tokens": 9}) for trace in colder]
        write_traces(candidates_path(root / "candidates", name, "test", "t0.5"), colder)
    for loop in ("grpo", "rairl"):
        history = [{"step": step, "reward/mean": step / 3, "rollout/correct": 0.5} for step in range(4)]
        (root / "history" / loop).mkdir(parents=True)
        (root / "history" / loop / "history.json").write_text(json.dumps(history))

    found = Finished(root, params, {})
    (root / "metrics").mkdir()
    for stage in STAGES:
        found.figures[stage] = found.run(stage)
        if stage != "report":
            if stage == "posttrain":
                found.figures[stage]["sft.updates"] = exact(24)  # what the sft stage says
            write_figures(root / "metrics" / f"{stage}.json", {**found.figures[stage], f"time.{stage}": exact(1.5)})
    return found


# --- stages ----------------------------------------------------------------------------------------------------------


def test_the_agreed_names_are_all_there(finished):
    names = set(json.loads((finished.root / "metrics.json").read_text()))
    for policy in POLICIES:
        for figure in ("pass@1", "pass@2", "pass@4", "greedy", "exact", "process@1", "format", "length", "t0.5.pass@1",
                       "loose_form", "wrong_answer", "no_answer", "distinct", "answer_entropy", "entropy"):  # fmt: skip
            assert f"posttrain.{policy}.{figure}" in names
        for split in arithmetic.OUT_OF_RANGE:
            assert f"posttrain.{policy}.{split}.pass@1" in names
    for pair in ("rairl-sft", "rairl-sft_last", "rairl-second_model", "grpo-sft", "rairl-grpo"):
        for figure in ("pass@1", "process@1", "t0.5.pass@1", "equal_length"):
            assert {f"posttrain.{pair}.{figure}", f"posttrain.{pair}.{figure}.p"} <= names
    for prefix in ("rerank", "rerank.on_rairl", "rerank.on_grpo", "rerank.ood_longer"):
        for method in ("random", "reward", "reward_vote", "majority", "logprob", "logprob_sum", "second_model_logprob",
                       "logratio", "logratio_sum", "entropy", "shortest", "longest", "oracle", "n", "calibration.ece",
                       "calibration.brier", "calibration.brier_base"):  # fmt: skip
            assert f"{prefix}.{method}" in names
        assert {f"{prefix}.reward-logratio", f"{prefix}.reward-logratio.p", f"{prefix}.auroc.logratio"} <= names
        assert {f"{prefix}.reward-majority", f"{prefix}.reward-majority.p", f"{prefix}.auroc.reward"} <= names
    assert {f"rerank.n{n}.{method}" for n in (1, 2, 4) for method in ("reward", "random", "oracle")} <= names
    for how in AGGREGATORS:
        assert {f"rerank.matrix.{how}.{selector}.n{n}" for selector in ("max", "vote") for n in (1, 2, 4)} <= names
    for method in ("reward", "logprob_drop", "logprob_change", "second_model_drop", "logratio_drop", "chance", "first",
                   "longest"):  # fmt: skip
        assert {f"localise.{method}.exact", f"localise.{method}.within1"} <= names
    assert {"localise.reward.f1", "localise.chance.f1", "localise.reward-chance.exact"} <= names
    for method in ("reward_drop", "reward_fall", "reward_argmin", "entropy", "base_logprob", "last"):
        assert f"localise.{method}.exact" in names
    assert {
        f"localise.{m}.{auc}" for m in ("reward", "logprob_drop") for auc in ("step_auc", "step_auc_pooled")
    } <= names
    for kind in ("kind.operator", "kind.misread", "kind.foreign", "family.seen", "family.unseen"):
        assert {f"localise.{kind}.{method}.exact" for method in ("reward", "logprob", "entropy", "chance")} <= names
        assert {f"localise.{kind}.reward.prefers", f"localise.{kind}.logprob.prefers"} <= names
    for split in ("test", *arithmetic.OUT_OF_RANGE):
        assert {f"audit.{split}.auroc", f"audit.{split}.auroc_length", f"audit.{split}.reward_gap"} <= names
        assert {f"audit.{split}.{name}" for name in ("auroc_matched_length", "partial_correlation", "surface_r2",
                                                     "auroc_without_surface")} <= names  # fmt: skip
    for variant in VARIANTS:
        assert {f"audit.variant.{variant}.{name}" for name in ("auroc", "auroc_before", "agreement")} <= names
    assert {
        f"audit.choice.n{n}.{name}" for n in (1, 2, 4) for name in ("score", "predicted", "accuracy", "gap")
    } <= names
    for hidden in HIDDEN:
        for figure in ("auroc", "exact"):
            parts = ("_before", "", "_change", "_change.p")
            assert {f"audit.outcome.{hidden}.{figure}{part}" for part in parts} <= names
    for check in ("premise", "ngrams"):
        assert {f"audit.{check}.reward", f"audit.{check}.logprob"} <= names
    assert {
        "audit.style.reward",
        "audit.ngrams.overlap_wrong",
        "audit.steps.correlation",
    } <= (names)
    assert {"audit.shuffle.reward", "audit.swap.steps", "audit.swap.answer", "time.rerank"} <= names


def test_figures_agree_with_one_another(finished):
    figures = merge_metrics(finished.root / "metrics")
    assert figures["rerank.random"].value == pytest.approx(figures["posttrain.sft.pass@1"].value)
    assert figures["rerank.oracle"].value == pytest.approx(figures["posttrain.sft.pass@4"].value)
    assert figures["rerank.on_rairl.oracle"].value == pytest.approx(figures["posttrain.rairl.pass@4"].value)
    assert figures["audit.test.auroc"] == figures["rerank.auroc.reward"]
    assert figures["audit.choice.n4.accuracy"].value == pytest.approx(figures["rerank.reward"].value)
    assert figures["audit.choice.n1.accuracy"].value == pytest.approx(figures["rerank.random"].value)
    difference = figures["posttrain.rairl.pass@1"].value - figures["posttrain.sft.pass@1"].value
    assert figures["posttrain.rairl-sft.pass@1"].value == pytest.approx(difference)
    # The authors follow up their wrong steps consistently, so a right answer by wrong steps is rare but possible.
    assert figures["posttrain.sft.process@1"].value <= figures["posttrain.sft.pass@1"].value
    assert figures["posttrain.sft.format"].value == 1
    assert figures["rerank.n"].value == 4
    assert figures["rerank.reward"] == figures["rerank.n4.reward"] == figures["rerank.matrix.mean.max.n4"]
    assert figures["rerank.reward_vote"] == figures["rerank.matrix.mean.vote.n4"]
    assert figures["rerank.random"].value == pytest.approx(figures["rerank.matrix.min.max.n1"].value)


def test_the_figures_are_ratios_of_what_lies_behind_them(finished):
    figures = merge_metrics(finished.root / "metrics")
    for stage in ("posttrain", "rerank", "localise", "audit"):
        behind = read_questions(finished.root / "plots" / stage)
        assert behind
        for name, rows in behind.items():
            top, bottom = (sum(column) for column in zip(*rows.values(), strict=True))
            assert figures[name].value == pytest.approx(top / bottom, abs=1e-5), name
    names = set(read_questions(finished.root / "plots" / "posttrain"))
    assert {"posttrain.rairl.pass@1", "posttrain.sft_last.t0.5.pass@1", "posttrain.grpo.process@1"} <= names


def test_own_files_give_the_stages_numbers(finished):
    model = RewardModel.from_pretrained(finished.root / "models" / "reward")
    traces = read_own(finished.root / "candidates" / "sft.test.jsonl").traces
    figures = merge_metrics(finished.root / "metrics")
    found = choice_figures(traces, list(rerank_rows(traces, model)), model.calibration, draws=100)
    for name in (
        "reward",
        "reward_vote",
        "majority",
        "shortest",
        "random",
        "oracle",
        "reward-random",
        "reward-majority",
    ):
        assert found[name].value == pytest.approx(figures[f"rerank.{name}"].value), name
    assert found["auroc"].value == pytest.approx(figures["rerank.auroc.reward"].value)
    rows = list(localise_rows(traces, model))
    found = location_figures(traces, rows, model.calibration.locator, draws=100)
    for name in ("reward.exact", "chance.exact", "longest.within1", "reward.f1", "chance.f1", "reward.step_auc"):
        assert found[name].value == pytest.approx(figures[f"localise.{name}"].value), name


def test_hiding_the_outcome_moves_no_read_before_it(finished):
    """The reward reads from left to right: without the answer its steps' reads, and so its guess, stay as they are."""
    figures = finished.figures["audit"]
    assert figures["audit.outcome.answer.exact_change"][:3] == (0, 0, 0)
    assert figures["audit.outcome.answer.auroc_change"][:3] == (0, 0, 0), "its score is the mean over its steps"
    shown, hidden = figures["audit.outcome.result.auroc_before"], figures["audit.outcome.result.auroc"]
    assert figures["audit.outcome.result.auroc_change"].value == pytest.approx(hidden.value - shown.value)
    section = {table.title: table for table in tables(figures)["audit"]}
    assert list(section["The outcome hidden"].rows) == list(labels.HIDDEN_LABELS.values())
    text = "The reward ranks right chains above wrong ones without seeing their outcome."
    [claim] = [claim for claim in claims(figures) if claim.text == text]
    assert claim.figure == hidden


def test_the_report_holds_the_policies_updates_against_each_other(finished):
    [policies, *_] = tables(merge_metrics(finished.root / "metrics"))["training"]
    at = policies.columns.index("updates")
    assert {label: row[at] for label, row in policies.rows.items()} == {
        "base": None, "SFT": "24", "SFT, last epoch": "24", "second model (SFT from another seed)": None,
        "GRPO (sees the answers)": "3", "R-AIRL": "3",
    }  # fmt: skip
    assert "pass@1, temperature 0.5" in policies.columns


def test_candidates_without_likelihoods_stop_the_stage(finished, tmp_path):
    shutil.copytree(finished.root / "candidates", tmp_path / "candidates")
    changes = {"candidates": tmp_path / "candidates", "scores": tmp_path / "s", "plots": tmp_path / "p"}
    path = tmp_path / "candidates" / "sft.test.likelihood.json"
    path.write_text("{}")
    with pytest.raises(RairlError, match=r"sft\.test\.likelihood\.json lacks the likelihood"):
        finished.run("rerank", **changes)
    path.unlink()
    with pytest.raises(RairlError, match=r"likelihood\.json does not exist; run the sample stage"):
        finished.run("localise", **changes)


def test_every_stage_is_deterministic(finished, tmp_path):
    outputs = {"scores": tmp_path / "scores", "plots": tmp_path / "plots"}
    assert finished.run("rerank", **outputs) == finished.figures["rerank"]
    assert finished.run("audit", plots=tmp_path / "audit") == finished.figures["audit"]
    first = finished.root / "plots" / "rerank" / "curve.png"
    assert first.read_bytes() == (tmp_path / "plots" / "curve.png").read_bytes()


def test_the_aggregator_comes_from_the_reward(finished, tmp_path):
    shutil.copytree(finished.root / "models" / "reward", tmp_path / "reward")
    card = json.loads((tmp_path / "reward" / "reward.json").read_text())
    card["calibration"]["aggregator"] = "min"
    (tmp_path / "reward" / "reward.json").write_text(json.dumps(card))
    changes = {name: tmp_path / name for name in ("reward", "scores", "plots")}
    finished.run("rerank", **changes)
    for folder, rule in ((finished.root / "scores" / "rerank", "mean"), (tmp_path / "scores", "min")):
        saved = json.loads((folder / "sft.test.json").read_text())
        assert saved["aggregator"] == rule
        row = next(iter(saved["traces"].values()))
        expected = min(row["steps"]) if rule == "min" else sum(row["steps"]) / len(row["steps"])
        assert row["score"] == pytest.approx(expected, abs=2e-4)


def test_a_missing_logprob_stops_the_stage(finished, tmp_path):
    shutil.copytree(finished.root / "candidates", tmp_path / "candidates")
    path = tmp_path / "candidates" / "sft.test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    del rows[5]["meta"]["logprob"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"candidates": tmp_path / "candidates", "scores": tmp_path / "s", "plots": tmp_path / "p"}
    with pytest.raises(
        RairlError, match=rf"sft\.test\.jsonl: trace '{rows[5]['id']}': field 'meta.logprob' is missing"
    ):
        finished.run("rerank", **changes)


def test_scores_of_other_candidates_are_refused(finished, tmp_path):
    saved = read_scores(finished.root / "scores" / "rerank" / "sft.test.json")
    with pytest.raises(RairlError, match=r"sft\.test\.json has no scores for trace 'elsewhere'"):
        saved.scores([Trace("elsewhere", "p", "text")])
    with pytest.raises(RairlError, match="run the rerank stage first"):
        finished.run("audit", rerank_scores=tmp_path, plots=tmp_path / "p")
    (tmp_path / "sft.test.json").write_text("[]")
    with pytest.raises(RairlError, match="does not hold scores"):
        finished.run("audit", rerank_scores=tmp_path, plots=tmp_path / "p")


def test_missing_candidates_are_named(finished, tmp_path):
    shutil.copytree(finished.root / "candidates", tmp_path / "candidates")
    (tmp_path / "candidates" / "grpo.test.jsonl").unlink()
    with pytest.raises(RairlError, match=r"grpo\.test\.jsonl does not exist"):
        finished.run("posttrain", candidates=tmp_path / "candidates", plots=tmp_path / "p")


def test_labelled_sets_are_scored_under_their_name(finished, tmp_path):
    shutil.copytree(finished.root / "data", tmp_path / "data")
    traces = [
        trace
        for problem in arithmetic.build(finished.params.dataset, 9)["test"]
        for trace in write_candidates(problem, "x", 2)
    ]
    write_traces(tmp_path / "data" / "labelled_human.jsonl", traces)
    changes = {"data": tmp_path / "data", "scores": tmp_path / "scores", "plots": tmp_path / "plots"}
    figures = finished.run("localise", **changes)
    assert {"localise.human.reward.exact", "localise.human.reward.f1", "localise.human.chance.f1"} <= set(figures)
    assert figures["localise.reward.exact"] == finished.figures["localise"]["localise.reward.exact"]
    assert (tmp_path / "plots" / "labelled_human.png").exists()
    saved = json.loads((tmp_path / "scores" / "human.json").read_text())["traces"]
    assert set(saved) == {trace.id for trace in traces}
    sections = tables(figures)["localise"]
    assert [table.title for table in sections] == [
        "First wrong step", "Human-labelled set: human", "What the reward adds to each locator",
        "Errors put in, by kind",
    ]  # fmt: skip


def test_an_unlabelled_row_in_a_labelled_set_is_refused(finished, tmp_path):
    shutil.copytree(finished.root / "data", tmp_path / "data")
    write_traces(tmp_path / "data" / "labelled_human.jsonl", [Trace("h", "p", "text")])
    with pytest.raises(RairlError, match=r"labelled_human\.jsonl: trace 'h' has no label"):
        finished.run("localise", data=tmp_path / "data", scores=tmp_path / "s", plots=tmp_path / "p")


@pytest.fixture(scope="module")
def logged(finished, tmp_path_factory) -> Finished:
    """The same folder as a run on logged traces: two models wrote the candidates, nothing is labelled but one set."""
    root = tmp_path_factory.mktemp("logged")
    values = yaml.safe_load((ROOT / "tests" / "miniature.yaml").read_text())
    values["dataset"] = {
        "name": "gsm8k-logged", "demos": "d", "revision": None, "logged": "l", "labelled": [], "dev": 2,
        "held_out": 0.5, "max_demos": None,
    }  # fmt: skip
    shutil.copytree(finished.root / "models", root / "models")
    shutil.copytree(finished.root / "data", root / "data")
    (root / "candidates").mkdir()
    for line, path in (("test", "candidates/logged.test.jsonl"), ("train", "data/logged_train.jsonl")):
        rows = []
        for row in (finished.root / "candidates/sft.test.jsonl").read_text().splitlines():
            value = {**json.loads(row), "source": f"model{len(rows) % 2}"}
            if line == "test":
                value = {key: item for key, item in value.items() if key not in ("labelled", "first_error")}
            rows.append(json.dumps(value))
        (root / path).write_text("\n".join(rows))
    shutil.copyfile(
        finished.root / "candidates/sft.test.likelihood.json", root / "candidates/logged.test.likelihood.json"
    )
    shutil.copyfile(root / "data/logged_train.jsonl", root / "data/labelled_people.jsonl")
    found = Finished(root, parse_params(values), {})
    (root / "metrics").mkdir()
    for folder in ("history/grpo", "history/rairl"):
        (root / folder).mkdir(parents=True)
    for stage in STAGES:
        found.figures[stage] = found.run(stage)
        write_figures(root / "metrics" / f"{stage}.json", found.figures[stage])
    return found


def test_logged_traces_know_which_model_wrote_them(logged):
    assert logged.figures["posttrain"] == {}
    figures = logged.figures["rerank"]
    assert {"rerank.model_name", "rerank.reward-model_name", "rerank.auroc.model_name", "rerank.longest"} <= set(
        figures
    )
    assert not any(name.startswith("rerank.on_rairl") for name in figures)
    # Without labelled samples of a policy, the first labelled set is the headline.
    found = logged.figures["localise"]
    assert found["localise.reward.exact"] == found["localise.people.reward.exact"]
    page = (logged.root / "report" / "report.html").read_text()
    assert "not tested" in page
    assert "which model wrote it" in page


# --- report ----------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser would fetch, and the text it would show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href") and tag != "a"]
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_needs_nothing_but_itself(finished):
    text = (finished.root / "report" / "report.html").read_text()
    page = Page(text)
    assert page.open == [], "every element is closed"
    assert page.fetched
    assert all(address.startswith("data:") for address in page.fetched)
    assert not re.search(r"https?://|@import|url\(", text)
    images = {path.name for path in (finished.root / "report").glob("*.png")}
    assert images == {
        "pass_at_k.png", "splits.png", "curve.png", "on_rairl.png", "on_grpo.png", "selectors.png", "reliability.png",
        "natural.png", "kinds.png", "auroc.png", "checks.png", "variants.png", "choice.png", "training_grpo.png",
        "training_rairl.png", "goodhart_rairl.png",
    }  # fmt: skip
    assert text.count("data:image/png") == len(images)


def test_the_report_holds_the_numbers_of_metrics_json(finished):
    text = (finished.root / "report" / "report.html").read_text()
    figures = json.loads((finished.root / "metrics.json").read_text())
    assert set(figures) == {name for stage in STAGES for name in finished.figures[stage]} - {
        name for stage in STAGES for name, value in finished.figures[stage].items() if value.n == 0
    } | {f"time.{stage}" for stage in STAGES if stage != "report"}
    for name in ("posttrain.rairl.pass@1", "rerank.majority", "localise.logprob_drop.exact", "audit.test.auroc"):
        number, interval = cell(Estimate(**figures[name]))
        assert f"<td>{number} <small>{interval}</small></td>" in text


def test_viewer_shows_every_kind_and_marks_the_steps(finished):
    text = (finished.root / "report" / "report.html").read_text()
    rows = json.loads(re.search(r'id="traces-json">(.*?)</script>', text, re.DOTALL)[1])
    assert {"right", "misjudged", "located", "mislocated"} <= {row["kind"] for row in rows}
    for row in rows:
        assert all(len(step["text"]) > 0 for step in row["steps"])
        trust = [step["trust"] for step in row["steps"]]
        assert trust[row["predicted"]] == min(trust)
        if row["kind"] == "located":
            assert row["predicted"] == row["first_error"]
        if row["kind"] == "misjudged":
            assert not row["correct"]
            assert row["place"] == 1


def test_viewer_kinds_by_hand():
    def trace(name, *, right, error=None):
        text = "one\ntwo"
        return Trace(
            name, "p", text, think_lines(text), "1", "1", right, error, error is not None, group=name.split("/")[0]
        )

    traces = [trace("a/0", right=True), trace("a/1", right=False, error=0), trace("a/2", right=False, error=1)]
    reads = {"a/0": (0.0, [1, 2]), "a/1": (2.0, [-1, 2]), "a/2": (-1.0, [-1, 2])}
    saved = Saved(
        Path("f"), "drop", {name: {"score": score, "steps": steps, "last": 0} for name, (score, steps) in reads.items()}
    )
    rows = {row["id"]: row for row in viewer_rows(traces, saved)}
    assert {name: row["kind"] for name, row in rows.items()} == {"a/1": "misjudged", "a/2": "mislocated"}
    assert rows["a/2"]["place"] == 3
    assert rows["a/2"]["steps"][1] == {"text": "two", "read": 2.0, "trust": 3.0}


def test_traces_cannot_break_out_of_the_page():
    assert "</script>" not in embed_json({"text": "</script><script>alert(1)</script>"})
    assert json.loads(embed_json({"text": "</script>\u2028"})) == {"text": "</script>\u2028"}


def test_claims_follow_fixed_rules():
    figures = {
        "posttrain.rairl-sft.pass@1": Estimate(0.1, 0.05, 0.15, 50),
        "posttrain.rairl-sft.ood_x.pass@1": Estimate(0.1, 0.0, 0.15, 50),
        "rerank.reward-majority": Estimate(-0.1, -0.2, -0.05, 50),
        "audit.ood_x.auroc": Estimate(0.4, 0.3, 0.45, 50),
        "audit.ood_y.auroc": Estimate(0.6, 0.55, 0.65, 50),
        "audit.shuffle.reward": Estimate(0.5, 0.4, 0.6, 50),
    }
    verdicts = {claim.text: claim.verdict for claim in claims(figures)}
    assert verdicts["Training on the learned reward beats supervised fine-tuning on test problems."] == SUPPORTED
    assert verdicts["Training on the learned reward beats supervised fine-tuning on ood_x."] == NOT_SUPPORTED
    assert verdicts["The reward picks better answers than a majority vote."] == NOT_SUPPORTED
    assert verdicts["The reward picks better answers than chance."] == NOT_TESTED
    assert verdicts["The reward finds the first wrong step better than chance."] == NOT_TESTED
    assert verdicts["Falsification test: the reward ranks right chains above wrong ones on ood_x."] == FALSIFIED
    assert verdicts["Falsification test: the reward ranks right chains above wrong ones on ood_y."] == SUPPORTED
    assert verdicts["The reward sees the order of the steps."] == NOT_SUPPORTED
    assert not any("which model" in text for text in verdicts), "one policy's samples have no model to know"
    assert {claim.verdict for claim in claims({})} == {NOT_TESTED}


def test_many_comparisons_are_corrected_for_their_number():
    sure = Estimate(0.1, 0.01, 0.2, 50)
    rivals = ("random", "majority", "logprob")
    figures = {f"rerank.reward-{rival}": sure for rival in rivals}
    figures |= {f"rerank.reward-{rival}.p": exact(p) for rival, p in zip(rivals, (0.01, 0.03, 0.04), strict=True)}
    found = {claim.text: claim for claim in claims(figures) if claim.use == RERANKING}
    # Holm: 3 * .01, 2 * .03, and .04 is not below .06.
    assert found["The reward picks better answers than chance."].verdict == SUPPORTED
    assert found["The reward picks better answers than a majority vote."].verdict == NOT_SUPPORTED
    assert "corrected p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}0.060" in (
        found["The reward picks better answers than the policy's own log-probability."].detail
    )
    assert difference_verdict(sure) == SUPPORTED
    assert adjusted(figures, ["rerank.reward-random.p"])["rerank.reward-random.p"] == exact(0.01)


def test_what_the_reward_adds_is_shown_beside_its_corrected_p():
    gain = Estimate(0.1, 0.01, 0.2, 50)
    figures = {"rerank.reward": gain, "rerank.on_rairl.reward": gain, "localise.people.reward.exact": gain}
    names = ["rerank.reward-random", "rerank.on_rairl.reward-random", "rerank.reward-majority"]
    names += [
        "localise.reward-chance.exact",
        "localise.people.reward-chance.exact",
        "localise.reward-reward_drop.exact",
    ]
    figures |= dict.fromkeys(names, gain) | {f"{name}.p": exact(0.01) for name in names}
    found = {table.title: table for section in tables(figures).values() for table in section}
    selectors, locators = (found[f"What the reward adds to each {what}"] for what in ("baseline", "locator"))
    assert selectors.columns == ["test", "p", "test, R-AIRL's samples", "p"]
    assert selectors.rows == {  # three comparisons
        "reward − random (chance)": [gain, "0.030", gain, "0.030"],
        "reward − majority vote": [gain, "0.030", None, None],
    }
    assert locators.columns == ["natural errors", "p", "people", "p"]
    assert locators.rows == {"reward − chance (uniform over steps)": [gain, "0.020", gain, "0.020"]}


def test_no_two_rows_of_a_table_have_one_label():
    tables_ = {name: value for name, value in vars(labels).items() if name.endswith("_LABELS")}
    assert len(tables_) >= 9
    for name, value in tables_.items():
        assert len(set(value.values())) == len(value), name


def test_cells():
    assert cell(Estimate(0.5, 0.4, 0.6, 9)) == ("0.500", "[0.400, 0.600]")
    assert cell(Estimate(61.25, 50, 70.06, 9)) == ("61.2", "[50.0, 70.1]")
    assert cell(None) == ("–", "")
    assert cell("supported") == ("supported", "")
    assert p_value(exact(0.0431)) == "=\N{NO-BREAK SPACE}0.043"
    assert p_value(exact(0.0002)) == "<\N{NO-BREAK SPACE}0.001"


def test_metrics_that_disagree_are_refused(tmp_path):
    (tmp_path / "base.json").write_text(json.dumps(to_json({"x": exact(1)})))
    (tmp_path / "gone.json").write_text(json.dumps(to_json({"y": exact(2)})))  # of a stage that is no more
    assert merge_metrics(tmp_path) == {"x": exact(1)}
    (tmp_path / "sft.json").write_text(json.dumps(to_json({"x": exact(2)})))
    with pytest.raises(RairlError, match=r"sft\.json: 'x' was also reported"):
        merge_metrics(tmp_path)
    (tmp_path / "sft.json").write_text("[1]")
    with pytest.raises(RairlError, match=r"sft\.json is not a metrics file"):
        merge_metrics(tmp_path)
    (tmp_path / "sft.json").write_text("{")
    with pytest.raises(RairlError, match=r"sft\.json is not valid JSON"):
        merge_metrics(tmp_path)


def test_no_metrics_at_all_is_an_error(tmp_path):
    with pytest.raises(RairlError, match="holds no figures"):
        merge_metrics(tmp_path)


def test_summary_table_shows_baselines_and_intervals(finished):
    console = Console(width=120, record=True)
    console.print(summary_table(json.loads((finished.root / "metrics.json").read_text())))
    text = console.export_text()
    for words in (
        "base",
        "SFT",
        "R-AIRL",
        "majority vote",
        "oracle",
        "chance",
        "log-probability",
        "best of 4",
        "ood_longer",
    ):
        assert words in text
    figure = finished.figures["rerank"]["rerank.reward"]
    assert f"[{figure.low:.3f}, {figure.high:.3f}]" in text


def test_summary_table_of_a_partial_run():
    console = Console(width=80, record=True)
    console.print(summary_table(to_json({"rerank.reward": Estimate(0.5, 0.4, 0.6, 9)})))
    assert "0.500" in console.export_text()
