"""Where a base model comes from: built in (a tiny Llama trained from scratch), a local folder, or a hub id."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rairl.core.errors import RairlError
from rairl.core.training_params import BuiltinBase

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MARKS = ("<think>", "</think>", "<answer>", "</answer>")
PAD, EOS = "<|pad|>", "<|end|>"
# A problem and a line break: the smallest chat template there is, so that built-in and hub models share one code path.
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
DATE = "26 Jul 2024"
"""What Llama's template writes where it knows no date."""
# Up to three digits are a piece, as in Llama 3; a space belongs to the word after it; the rest stands alone.
_PIECES = r" ?\d{1,3}| ?[^\s\d\p{P}]+| ?\p{P}|\n|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Byte-level BPE in which common numbers are one token; any text round-trips."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS, *MARKS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def new_model(
    params: BuiltinBase, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int, seed: int
) -> PreTrainedModel:
    """A Llama with random weights, ready to learn."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from rairl.models.policy import mixed, placed

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=params.hidden_size,
        intermediate_size=params.hidden_size * 5 // 2,
        num_hidden_layers=params.layers,
        num_attention_heads=params.heads,
        num_key_value_heads=params.heads,
        max_position_embeddings=max_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
        # The library's 0.02 suits widths of thousands; at this width attention would start flat and stay there long.
        initializer_range=params.hidden_size**-0.5,
    )
    model = LlamaForCausalLM(config)
    model.config.dtype = getattr(torch, params.dtype)
    return mixed(placed(model))


def load_source(
    key: str, source: str, revision: str | None, system: str | None = None, *, dtype: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model from a local folder or the hub.

    Args:
        key: the parameter that named ``source``, for error messages.
        revision: pinned commit of a hub id; a folder has none.
        system: message in front of every problem, see :func:`address`.
        dtype: see :func:`rairl.models.policy.precision`.

    Raises:
        RairlError: when the source can't be loaded, or a hub id has no pinned revision.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rairl.models.policy import placed, precision

    local = Path(source).is_dir()
    if not local and revision is None:
        raise RairlError(
            f"{key} {source!r} is no name known here and no folder, so it is read as a hub id; "
            f"set {key.split('.')[0]}.revision to the commit to pin"
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source, revision=None if local else revision, use_safetensors=True, **precision(dtype)
        )
        tokenizer = AutoTokenizer.from_pretrained(source, revision=None if local else revision)
    except (OSError, ValueError) as error:
        raise RairlError(f"{key} {source!r} can't be loaded: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHAT_TEMPLATE
    address(tokenizer, system)
    return placed(model.eval()), tokenizer


def address(tokenizer: PreTrainedTokenizerBase, system: str | None) -> None:
    """Let the chat template put a system message in front of every conversation, in place; None changes nothing.

    The message travels with the saved tokenizer, so that whoever reads with the model later asks as it was trained. A
    template that writes today's date (Llama's) is told a fixed one: the same prompt must not change over night.

    Raises:
        RairlError: when the template has no room for a system message.
    """
    if system is None:
        return
    template = tokenizer.chat_template
    quoted = json.dumps(system, ensure_ascii=False)
    fixed = f"{{%- set date_string = '{DATE}' -%}}" if "date_string" in template else ""
    opening = f"{{%- set messages = [{{'role': 'system', 'content': {quoted}}}] + messages -%}}"
    tokenizer.chat_template = fixed + opening + template
    probe = [{"role": "user", "content": "1 + 1"}]
    try:
        rendered = tokenizer.apply_chat_template(probe, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # whatever the template raises
        raise RairlError(f"dataset.system: this model's chat template refuses a system message ({error})") from error
    if system.strip() not in rendered:
        raise RairlError("dataset.system: this model's chat template leaves the system message out")


def longest(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> int:
    """Tokens of the longest text."""
    return max(len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"])
