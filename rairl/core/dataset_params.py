"""Parameters of each data set."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rairl.core.section import Fraction, NonNegativeInt, PositiveInt, Section


class ArithmeticDataset(Section):
    """The built-in benchmark of generated word problems with an exact step oracle."""

    name: Literal["arithmetic"]
    demos: PositiveInt = Field(description="problems with an expert trace")
    prompts: PositiveInt = Field(description="problems without traces, for the policy loop")
    dev: PositiveInt = Field(description="held-out problems with expert traces; every choice is made on them")
    test: PositiveInt = Field(description="held-out problems for the reported numbers")
    ood: PositiveInt = Field(description="problems in each out-of-distribution split")
    noise: Fraction = Field(
        default=0.0, description="share of the demonstrations, and of dev, that a careless author solved instead"
    )


class LoggedDataset(Section):
    """Expert traces plus logged traces of other models: the reward is learned offline, no policy is in the loop."""

    name: Literal["gsm8k-logged"]
    demos: str = Field(description="GSM8K training file, or the hub id openai/gsm8k")
    revision: str | None = Field(default=None, description="pinned revision when `demos` is a hub id")
    logged: str = Field(description="file of model solutions, several per question, correctness known")
    labelled: list[str] = Field(
        default=[],
        description="files with human first-error labels: ProcessBench, MR-Ben, BIG-Bench-Mistake, or of `rairl view`",
    )
    dev: PositiveInt = Field(description="expert traces kept out of training; every choice is made on them")
    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="share of the logged questions kept for reranking; their traces are never negatives"
    )
    max_demos: PositiveInt | None = Field(default=None, description="use at most this many expert traces; null for all")


class Reviewed(Section):
    """Labels of a reviewer on solutions that somebody else wrote: traces whose first wrong step is known."""

    labels: list[str] = Field(
        default=[],
        description="files as `rairl view` lets a reviewer download them (or of the public labelled sets), to learn "
        "from: wrong traces are negatives from their first wrong step on, right ones are positives",
    )
    dev_labels: list[str] = Field(
        default=[],
        description="such files on dev's problems or other ones: natural errors to choose locator and threshold on",
    )


class FileDataset(Reviewed):
    """A user's own files in the trace format."""

    name: Literal["file"]
    demos: str = Field(description="expert traces")
    prompts: str = Field(description="problems for the policy loop; `gold` is needed only by the outcome baseline")
    dev: str = Field(description="held-out expert traces")
    test: str = Field(description="held-out problems with `gold`")


class RealText(Reviewed):
    """What the data sets of real questions share. A source is a JSON-lines file or a hub id with a pinned revision."""

    system: str | None = Field(
        default=None, description="system message in front of every problem, by the model's own chat template"
    )
    dev: PositiveInt = Field(description="expert traces kept out of training; every choice is made on them")
    max_demos: PositiveInt | None = Field(default=None, description="use at most this many expert traces; null for all")
    max_problem_words: PositiveInt | None = Field(
        default=None, description="expert traces on longer problems are left out, with a count; test never is"
    )
    max_solution_words: PositiveInt | None = Field(
        default=None, description="longer expert traces are left out, with a count"
    )
    split_seed: NonNegativeInt = Field(
        default=42, description="of the splits; apart from `seed`, so that runs of several seeds share their test set"
    )


class Gsm8kDataset(RealText):
    """GSM8K: expert solutions of its training questions by people or by a stronger model; its own test questions."""

    name: Literal["gsm8k"]
    demos: str = Field(description="rows with `question` and `answer`: ending in '#### 72', or '<think>' and '\\boxed'")
    demos_revision: str | None = None
    test: str = Field(description="rows with `question` and `answer`, whose last line is '#### 72'")
    test_revision: str | None = None


class MmluProDataset(RealText):
    """MMLU-Pro: questions with 3 to 10 options. It ships no rationale for them, so experts' come from elsewhere."""

    name: Literal["mmlu_pro"]
    questions: str = Field(
        description="rows with `question_id`, `question`, `options`, `answer` (a letter), `category`"
    )
    questions_revision: str | None = None
    rationales: str = Field(description="rows with `question_id` and `rationale`: worked solutions of those questions")
    rationales_revision: str | None = None
    category: str | None = Field(default=None, description="questions of one category only, 'health' say; null for all")
    test: PositiveInt = Field(description="questions kept for the reported numbers")


class MedReasonDataset(RealText):
    """MedReason: medical questions with options and worked reasoning (Wu et al. 2025)."""

    name: Literal["medreason"]
    demos: str = Field(description="rows with `question`, `options`, `reasoning`, `answer`, `dataset_name`")
    demos_revision: str | None = None
    sources: Annotated[list[str], Field(min_length=1)] = Field(
        default=["medqa", "medmcqa"], description="values of `dataset_name` to use: those whose questions have options"
    )
    test: PositiveInt = Field(description="questions kept for the reported numbers")
