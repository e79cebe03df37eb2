"""Where the traces come from: one module per source, each a function from parameters to splits."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from rairl.core.dataset_params import (
    ArithmeticDataset,
    FileDataset,
    Gsm8kDataset,
    LoggedDataset,
    MedReasonDataset,
    MmluProDataset,
    Reviewed,
)
from rairl.core.params import Params
from rairl.core.traces import Trace


class Splits(NamedTuple):
    """The traces of each split by its name (``data/<name>.jsonl``), and what the data card should say besides."""

    traces: dict[str, list[Trace]]
    notes: dict[str, Any]


def build(params: Params) -> Splits:
    """All splits of the data set that ``params.dataset`` names, deterministic in ``params.seed``.

    Where it names labels of a reviewer, they are the splits ``labels_train`` and ``labels_dev``.

    Raises:
        RairlError: for a missing or malformed file (file, line, field), or a hub that cannot be reached.
    """
    from rairl.datasets.labelled import reviewed

    splits, notes = _source(params)
    if isinstance(params.dataset, Reviewed):
        for name, paths in (("labels_train", params.dataset.labels), ("labels_dev", params.dataset.dev_labels)):
            if paths:
                splits[name], notes[name] = reviewed(paths)
    return Splits(splits, notes)


def _source(params: Params) -> Splits:
    from rairl.datasets import arithmetic, files, gsm8k, logged, medreason, mmlu_pro

    match params.dataset:
        case ArithmeticDataset():
            return Splits(arithmetic.build(params.dataset, params.seed), {})
        case LoggedDataset():
            return logged.build(params.dataset, params.seed)
        case FileDataset():
            return files.build(params.dataset)
        case Gsm8kDataset():
            return gsm8k.build(params.dataset)
        case MmluProDataset():
            return mmlu_pro.build(params.dataset)
        case MedReasonDataset():
            return medreason.build(params.dataset)


def question_key(problem: str) -> str:
    """The problem's words and numbers in lower case: equal for two copies that differ in punctuation or spacing."""
    return " ".join(re.findall(r"\d+(?:[.,]\d+)*|[^\W\d]+", problem.casefold()))
