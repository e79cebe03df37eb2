"""What every row works on: the models and data of a finished `make repro`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rairl.core.errors import RairlError
from rairl.core.params import Params, load_params
from rairl.core.traces import Trace, read_traces
from rairl.models.policy import load_policy
from rairl.text.segment import think_lines

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Material:
    """Models and data of the project in ``root``."""

    root: Path
    params: Params
    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompts: list[Trace]
    demos: list[Trace]
    candidates: list[Trace]

    @classmethod
    def of(cls, root: Path) -> Material:
        """From the folders that the pipeline leaves behind.

        Raises:
            RairlError: when it has not run there.
        """
        needed = [
            root / name for name in ("models/sft", "models/second_model", "models/reward", "candidates/sft.test.jsonl")
        ]
        missing = [str(path) for path in needed if not path.exists()]
        if missing:
            raise RairlError(f"{', '.join(missing)} is not there; run `make repro` first")
        return cls(
            root,
            load_params(root / "params.yaml"),
            *load_policy(root / "models" / "sft"),
            read_traces(root / "data" / "test.jsonl"),
            read_traces(root / "data" / "demos.jsonl"),
            read_traces(root / "candidates" / "sft.test.jsonl"),
        )

    def text_of(self, tokens: int, start: int = 0) -> str:
        """Real candidates' text, one after the other, cut to a number of tokens."""
        ids: list[int] = []
        at = start
        while len(ids) < tokens:
            text = self.candidates[at % len(self.candidates)].text
            ids += self.tokenizer(text, add_special_tokens=False)["input_ids"]
            at += 1
        return self.tokenizer.decode(ids[:tokens], skip_special_tokens=False)

    def long_traces(self, prompt: int, lengths: list[int]) -> list[Trace]:
        """Candidates of one problem of ``prompt`` tokens, with so many tokens each."""
        problem = self.text_of(prompt)
        texts = [self.text_of(length, start) for start, length in enumerate(lengths)]
        return [Trace(str(at), problem, text, think_lines(text)) for at, text in enumerate(texts)]

    def many(self, count: int) -> list[Trace]:
        """``count`` candidates, over and over where there are not as many, under ids of their own."""
        every = self.candidates
        return [replace(every[at % len(every)], id=str(at), gold=None, correct=None) for at in range(count)]
