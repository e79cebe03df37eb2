"""Stage report: one HTML file that answers every claim, the plots as PNG, and all figures in one metrics.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rairl.core.errors import RairlError
from rairl.core.params import Params
from rairl.core.stats import Estimate, from_json, to_json
from rairl.core.yaml_files import dump_yaml
from rairl.evaluate.candidates import candidates_path, read_candidates, reference_policy
from rairl.evaluate.scores import read_scores
from rairl.report import plots as draw
from rairl.report.claims import USES, VERDICTS, claims
from rairl.report.page import data_uri, render
from rairl.report.tables import tables
from rairl.report.viewer import viewer_rows
from rairl.stages.layout import STAGES

if TYPE_CHECKING:
    from rairl.tracking.run import Run


def report(
    params: Params,
    run: Run,
    *,
    data: Path,
    candidates: Path,
    metrics_dir: Path,
    grpo_history: Path,
    rairl_history: Path,
    rerank_scores: Path,
    localise_scores: Path,
    posttrain_plots: Path,
    rerank_plots: Path,
    localise_plots: Path,
    audit_plots: Path,
    report: Path,
    summary: Path,
) -> dict[str, Estimate]:
    """Write ``report/report.html`` with its plots beside it, and ``summary``: the figures of all stages in one file.

    Raises:
        RairlError: naming a metrics, score or history file that is not what its stage writes.
    """
    from rairl.tracking.provenance import git_commit

    figures = merge_metrics(metrics_dir)
    report.mkdir(parents=True, exist_ok=True)
    _write_json(summary, to_json(figures))
    images = {
        "training": _collect(posttrain_plots, report) + _histories(grpo_history, rairl_history, report),
        "rerank": _collect(rerank_plots, report),
        "localise": _collect(localise_plots, report),
        "audit": _collect(audit_plots, report),
        "time": [],
    }
    found, asked = tables(figures), claims(figures)
    viewer, events = _viewer(params, candidates, rerank_scores), _guard_events(rairl_history)
    page = render(
        {
            "dataset": params.dataset.name,
            "commit": git_commit(Path.cwd()),
            "digest": params.digest(),
            "seed": params.seed,
            "draws": params.report.bootstrap,
            "claims": {use: [claim for claim in asked if claim.use == use] for use in USES},
            "tally": {
                verdict: count for verdict in VERDICTS if (count := sum(claim.verdict == verdict for claim in asked))
            },
            "sections": [
                {
                    "id": key,
                    "title": title,
                    "lead": lead,
                    "events": events if key == "training" else [],
                    "tables": found[key],
                    "images": images[key],
                }
                for key, (title, lead) in (SECTIONS | (LOGGED if params.logged else {})).items()
                if found[key] or images[key]
            ],
            "viewer": viewer,
            "viewer_note": _labelled_note(localise_scores),
            "card": _card(data / "card.json"),
            "params": dump_yaml(params.model_dump(mode="json"), sort_keys=False),
        }
    )
    (report / "report.html").write_text(page, encoding="utf-8")
    run.log_artifact(report, of_pipeline=True)
    return {}


SECTIONS = {
    "training": (
        "Training a policy",
        "The same questions for every policy: the base model, the one fine-tuned on the demonstrations (SFT, at its "
        "best epoch and at its last), the second model (the reward's backbone), one trained on whether its "
        "final answers are right (GRPO, an upper reference, since it sees them), and one trained on the learned reward "
        "(R-AIRL).",
    ),
    "rerank": (
        "Picking among sampled answers",
        "Given N sampled solutions of one question, which one is handed out? Random is chance, the oracle "
        "knows the truth.",
    ),
    "localise": (
        "Pointing at the first wrong step",
        "Given a wrong solution, which step is the first wrong one? Chance picks a step at random; the longest step "
        "and the step a plain language model finds least likely are the rivals to beat.",
    ),
    "audit": (
        "Audits",
        "Does the reward follow the reasoning, or something cheaper, and does it hold on problems unlike any "
        "demonstration?",
    ),
    "time": ("Time", "Wall-clock time of every stage."),
}
"""Key of a section to its title and lead."""
LOGGED = {
    "training": (
        "Training the reward",
        "The reward learned from human solutions and other models' logged ones; no policy was trained.",
    )
}
"""The sections that read differently when the reward is learned from logged traces."""

CAPTIONS = {
    "pass_at_k": "pass@k on test.",
    "splits": "pass@1 per split.",
    "curve": "Expected accuracy against the number of candidates, SFT policy's samples (or the logged ones).",
    "on_rairl": "The same on the R-AIRL policy's own samples.",
    "on_grpo": "The same on the GRPO policy's samples.",
    "reliability": "Reliability: share of right answers against the probability predicted from the reward.",
    "selectors": "Selectors at the headline N; the dashed line is chance.",
    "kinds": "First wrong step by kind of corruption; the last five kinds are no training negative's.",
    "natural": "First wrong step on the policy's own wrong solutions; the dashed line is chance.",
    "auroc": "Right against wrong chains of one question; the dashed line is chance.",
    "checks": "What moves the reward; the dashed line is blindness.",
    "variants": "The same solutions in another form or wording.",
    "choice": "Over-optimisation by choice: what the reward promises of its pick among N, and what the pick is worth.",
}


def merge_metrics(folder: Path) -> dict[str, Estimate]:
    """All figures of the stages before the report, from ``folder/<stage>.json``, by name.

    A file of another name, left by a stage that is no more, is not read.

    Raises:
        RairlError: naming a file that holds no figures, or a figure that two stages report differently.
    """
    figures: dict[str, Estimate] = {}
    for path in sorted(folder / f"{stage}.json" for stage in STAGES if stage != "report"):
        if not path.exists():
            continue
        try:
            found = from_json(_read_json(path))
        except (KeyError, TypeError, AttributeError) as error:
            raise RairlError(f"{path} is not a metrics file ({error}); run its stage again") from error
        doubles = {name for name in found.keys() & figures.keys() if found[name] != figures[name]}
        if doubles:
            raise RairlError(f"{path}: {min(doubles)!r} was also reported by another stage, with another value")
        figures |= found
    if not figures:
        raise RairlError(f"{folder} holds no figures; run the stages before the report")
    return dict(sorted(figures.items()))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RairlError(f"{path} does not exist; run the stage that writes it") from error
    except json.JSONDecodeError as error:
        raise RairlError(f"{path} is not valid JSON: {error}; run the stage that writes it again") from error


def _write_json(path: Path, value: Any) -> None:
    draft = path.with_name(path.name + ".part")
    draft.parent.mkdir(parents=True, exist_ok=True)
    draft.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def _collect(folder: Path, report: Path) -> list[dict[str, Any]]:
    """Copy a stage's plots beside the report, and embed them."""
    images = []
    for path in sorted(folder.glob("*.png")):
        copy = report / path.name
        shutil.copyfile(path, copy)
        kind, _, name = path.stem.partition("labelled_")
        caption = CAPTIONS[kind] if kind else f"First wrong step on the labelled set {name}; the dashed line is chance."
        images.append({"uri": data_uri(copy), "caption": caption, "wide": False})
    return images


def _histories(grpo: Path, rairl: Path, report: Path) -> list[dict[str, Any]]:
    images = []
    for label, folder in (("R-AIRL", rairl), ("GRPO", grpo)):
        path = folder / "history.json"
        if not path.exists():
            continue  # logged traces: no policy is trained
        rows = _read_json(path)
        if not isinstance(rows, list) or not all(isinstance(row, dict) and "step" in row for row in rows):
            raise RairlError(f"{path} must be a list of objects with 'step'; run its stage again")
        keys = ("reward/mean", "learned reward, mean"), ("rollout/correct", "share of right answers")
        if folder == rairl and all(any(key in row for row in rows) for key, _ in keys):  # GRPO's reward is the truth
            image = draw.twin(rows, *keys, report / "goodhart_rairl.png")
            caption = f"{label}: the learned reward beside the truth. Rising while answers get worse, it is hacked."
            images.append({"uri": data_uri(image), "caption": f"{caption} {draw.BAND}", "wide": False})
        if draw.history_panels(rows):
            image = draw.histories(rows, report / f"training_{folder.name}.png")
            caption = f"{label}: the training run, step by step. {draw.BAND}"
            images.append({"uri": data_uri(image), "caption": caption, "wide": True})
    return images


def _guard_events(folder: Path) -> list[str]:
    """What the collapse guard did, a sentence each."""
    path = folder / "guard.json"
    return [
        f"The collapse guard after iteration {event['iteration']}: {event['reason']} ({event['action']})."
        for event in (_read_json(path) if path.exists() else [])
    ]


def _viewer(params: Params, candidates: Path, scores: Path) -> list[dict[str, Any]]:
    policy = reference_policy(logged=params.logged)
    path = candidates_path(candidates, policy, "test")
    return viewer_rows(read_candidates(path), read_scores(scores / f"{policy}.test.json"))


def _labelled_note(scores: Path) -> str:
    sets = sorted(path.stem for path in scores.glob("*.json") if path.stem != "natural")
    note = "Trust is what the locator compares: the lowest is where the reward points."
    if sets:
        note += f" Texts of the labelled sets ({', '.join(sets)}) are not copied into this file; their licences differ."
    return note


def _card(path: Path) -> dict[str, Any]:
    card = _read_json(path)
    splits = {name: row for name, row in card.get("splits", {}).items() if isinstance(row, dict)}
    columns = list(dict.fromkeys(key for row in splits.values() for key in row))
    apart = ("splits", "shared_problems", "near_duplicates")
    rest = {key: value for key, value in card.items() if key not in apart}
    if "shared_problems" in card:
        common = {pair: count for pair, count in card["shared_problems"].items() if count}
        rest["problems that two splits share"] = common or "none"
    near, shared = card.get("near_duplicates", {}), card.get("shared_problems", {})
    return {
        "overlap": [
            {
                "pair": pair.replace("/", " and "),
                "same": shared.get(pair) or shared.get(_turned(pair)) or 0,
                "near": row["near"],
                "closest": row["closest"],
                "example": " | ".join(row["pair"]),
            }
            for pair, row in near.items()
        ],
        "columns": columns,
        "rows": {name: [_plain(row.get(column, "")) for column in columns] for name, row in splits.items()},
        "rest": dump_yaml(rest, sort_keys=False, allow_unicode=True, width=100) if rest else "",
    }


def _turned(pair: str) -> str:
    first, _, second = pair.partition("/")
    return f"{second}/{first}"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
