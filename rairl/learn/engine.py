"""Rollouts by vLLM in the trainer's own process: many times faster than a loop in Python, for big policies.

**Not run yet**: no GPU was at hand. It is written against the documented interface of vLLM 0.33 (``LLM.generate``,
``LLM.apply_model``, ``LLM.reset_prefix_cache``) and tested against a stand-in with that interface.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rairl.core.errors import RairlError
from rairl.core.training_params import PolicyParams
from rairl.learn import distributed
from rairl.learn.rollouts import Completion
from rairl.models.adapters import merged
from rairl.models.reading import render_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def new_engine(params: PolicyParams, folder: Path) -> Engine | None:
    """What samples the policy's rollouts where ``policy.rollouts`` asks for vLLM; None for transformers.

    Args:
        folder: of the model that the policy starts from.
    """
    return Engine(folder, params.vllm_memory) if params.rollouts == "vllm" else None


class Engine:
    """A second copy of the policy inside vLLM, which gets the policy's weights by :meth:`sync`.

    It computes with other kernels than the trainer, so its probabilities differ in the last digits from those that the
    policy's loss takes it to have sampled by; the loss does not correct for that.

    Args:
        folder: of the model that the policy starts from.
        memory: share of the GPU's memory for that copy and its cache.

    Raises:
        RairlError: when vLLM is not installed, or several processes share the work.
    """

    def __init__(self, folder: Path, memory: float) -> None:
        if find_spec("vllm") is None:
            raise RairlError(
                "policy.rollouts 'vllm' needs vLLM, which is not installed: install the release made for this torch "
                f"({torch.__version__}), or use 'transformers'"
            )
        if distributed.world()[1] > 1:
            raise RairlError("policy.rollouts 'vllm' runs in one process; use 'transformers' with several")
        # In this process, where it can be handed tensors; read when vllm is imported.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM

        # generation_config: or the model's own file would change what is sampled
        self.llm = LLM(model=str(folder), gpu_memory_utilization=memory, generation_config="vllm")

    @torch.no_grad()
    def sync(self, model: PreTrainedModel) -> None:
        """Give the engine the policy's present weights, adapters folded in, and drop what it cached of older ones."""
        weights = list(merged(model).state_dict().items())

        def load(theirs: torch.nn.Module) -> None:
            theirs.load_weights(iter(weights))

        self.llm.apply_model(load)
        self.llm.reset_prefix_cache()

    def sample(
        self,
        tokenizer: PreTrainedTokenizerBase,
        problems: Sequence[str],
        *,
        n: int,
        max_new_tokens: int,
        temperature: float,
        seed: int,
    ) -> list[Completion]:
        """Draw ``n`` completions for each problem, as :func:`rairl.learn.rollouts.sample` does by other numbers."""
        from vllm import SamplingParams

        prompts = tokenizer([render_prompt(tokenizer, problem) for problem in problems], add_special_tokens=False)
        options = [
            SamplingParams(
                n=n,
                temperature=temperature,
                max_tokens=max_new_tokens,
                seed=seed + number,
                logprobs=0,  # of the token drawn alone, at temperature 1
                stop_token_ids=[tokenizer.eos_token_id],
                detokenize=False,
            )
            for number in range(len(problems))
        ]
        asked = [{"prompt_token_ids": ids} for ids in prompts["input_ids"]]
        completions = []
        for ids, answer in zip(prompts["input_ids"], self.llm.generate(asked, options, use_tqdm=False), strict=True):
            for out in answer.outputs:
                drawn = list(out.token_ids)
                found = [place[token].logprob for token, place in zip(drawn, out.logprobs, strict=True)]
                completions.append(Completion(list(ids), drawn, found, drawn[-1:] == [tokenizer.eos_token_id]))
        return completions
