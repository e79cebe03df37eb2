"""The folder of a reward model: what is in it, and the card that explains it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rairl.core.errors import RairlError

CARD = "README.md"
_DEV = {
    "dev/score": "mean of dev/prefers_corrupted and dev/auroc; it chose this checkpoint",
    "dev/prefers_corrupted": "an expert trace scores above its own corruption (chance 0.5)",
    "dev/auroc": "a right sample scores above a wrong one of the same problem (chance 0.5)",
    "dev/exact": "first wrong step found, in corrupted expert traces",
    "dev/exact_rollouts": "first wrong step found, in wrong samples (where they part from the expert)",
    "dev/exact_labelled": "first wrong step found, in solutions that a reviewer marked",
}


def require_reward(folder: Path) -> dict[str, Any]:
    """What ``reward.json`` in ``folder`` says.

    Raises:
        RairlError: when there is none.
    """
    try:
        return json.loads((folder / "reward.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RairlError(
            f"{folder} holds no reward model (reward.json is missing); train one with `make repro`, or name a "
            "registered one (models:/rairl-reward@champion) or a hub repository with its commit (owner/name@commit)"
        ) from error


def write_card(folder: Path, data: Path | None = None) -> None:
    """Write the model card into the folder of a saved reward.

    Args:
        folder: with ``reward.json`` and, where there are dev scores, ``dev.json``.
        data: the data card (``data/card.json``); without it the card says that the data are not known.
    """
    dev = folder / "dev.json"
    text = model_card(
        require_reward(folder),
        json.loads(dev.read_text(encoding="utf-8")) if dev.is_file() else {},
        json.loads(data.read_text(encoding="utf-8")) if data is not None and data.is_file() else {},
    )
    (folder / CARD).write_text(text, encoding="utf-8")


def model_card(reward: Mapping[str, Any], dev: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """The model card, in the hub's form: front matter, then Markdown.

    Args:
        reward: ``params`` and ``calibration`` of ``reward.json``.
        dev: ``step`` and ``scores`` of ``dev.json``; may be empty.
        data: the data card; may be empty.
    """
    params, calibration = reward["params"], reward["calibration"]
    linear = params["head"] == "linear"
    front = ["---", "library_name: transformers", "tags: [rairl, process-reward-model, inverse-reinforcement-learning]"]
    front += ["pipeline_tag: token-classification"] if linear else []
    return "\n".join(
        [
            *front,
            "---",
            "# Process reward model",
            "",
            "Scores every step of a worked solution by how much it reads like an expert's. Learned from expert traces "
            "by adversarial inverse reinforcement learning with rairl, without reward labels.",
            "",
            "## Use",
            "```python",
            "import rairl",
            'reward = rairl.load("this/folder")',
            'result = reward.score("2 + 2 * 3?", ["2 * 3 = 6", "2 + 6 = 8"])',
            "print(result.score, result.steps, result.first_error)",
            "```",
            "`rairl score`, `rerank` and `localise` do it for a file of traces."
            + (" Plain transformers loads it as `AutoModelForTokenClassification`." if linear else ""),
            "",
            *_data_section(data),
            *_dev_section(dev),
            "## Intended use",
            "Ranking several solutions of the *same* problem, pointing at the step of a solution that is most likely "
            "wrong, and as a reward in training. For problems of the kind it has learned from.",
            "",
            "## Limits",
            "- It measures likeness to experts, not truth. Never let it decide alone where that can harm somebody.",
            "- A score means nothing across problems: how familiar a problem looks is part of it.",
            "- Away from its data (other subject, longer chains, other wording) its scores are a guess. Measure them "
            "there first: a few dozen traces with known first errors tell whether it beats chance.",
            "- A policy trained on it for long finds what it does not see. Watch the accuracy of the policy, too.",
            "",
            "## Parameters",
            "| | |",
            "|---|---|",
            *(f"| reward.{key} | {_cell(value)} |" for key, value in params.items()),
            *(f"| calibration: {key} | {_cell(value)} |" for key, value in calibration.items()),
            "",
        ]
    )


def _data_section(data: Mapping[str, Any]) -> list[str]:
    lines = ["## Data"]
    if not data:
        return [*lines, "Not known: no data card was at hand when this card was written.", ""]
    lines += [f"Data set `{data['dataset']['name']}`, seed {data['seed']}.", ""]
    lines += ["| split | traces | problems | SHA-256 |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {row['rows']} | {row['problems']} | `{row['sha256'][:12]}` |"
        for name, row in data["splits"].items()
    ]
    negatives = "`logged_train`" if "logged_train" in data["splits"] else "the policy's own samples"
    return [*lines, "", f"Experts: `demos`; their opposites: {negatives}. Every choice was made on `dev`.", ""]


def _dev_section(dev: Mapping[str, Any]) -> list[str]:
    lines = ["## Scores on dev"]
    if not dev:
        return [*lines, "Not known.", ""]
    lines += [f"At step {dev['step']} of training; chosen on these data, so expect a little less elsewhere.", ""]
    lines += ["| score | value | meaning |", "|---|---|---|"]
    return [
        *lines,
        *(f"| {name} | {value:.3f} | {_DEV.get(name, '')} |" for name, value in dev["scores"].items()),
        "",
    ]


def _cell(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value
