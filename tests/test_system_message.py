"""The system message stands in every prompt of every architecture's template, and travels with the saved tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from rairl.core.errors import RairlError
from rairl.core.traces import Trace
from rairl.models.base import address
from rairl.models.policy import load_policy
from rairl.models.reading import encode, render_prompt

CHATML = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if message.role == 'user' %}"
    "{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""What Qwen's template does with a plain conversation."""
LLAMA = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    + "{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}{%- endif %}"
    + "{%- if messages[0]['role'] == 'system' %}{%- set said = messages[0]['content'] %}"
    + "{%- set messages = messages[1:] %}{%- else %}{%- set said = '' %}{%- endif %}"
    + "{{- '<|start|>system\\nToday Date: ' + date_string + '\\n\\n' + said + '<|eot|>' }}"
    + "{%- for message in messages %}"
    + "{{- '<|start|>' + message['role'] + '\\n' + message['content'] + '<|eot|>' }}{%- endfor %}"
    + "{%- if add_generation_prompt %}{{- '<|start|>assistant\\n' }}{%- endif %}"
)
"""What Llama's template does, its date included."""
SYSTEM = 'Think "hard", \\boxed{} it.\nThen answer; naïve 𝟙.'


@pytest.mark.parametrize("template", [CHATML, LLAMA], ids=["qwen", "llama"])
def test_the_message_is_asked_and_saved(template: str, tiny_policy: Path, tmp_path: Path) -> None:
    tokenizer = load_policy(tiny_policy)[1]
    tokenizer.chat_template = template
    address(tokenizer, SYSTEM)
    prompt = render_prompt(tokenizer, "1 + 1?")
    assert SYSTEM in prompt and prompt.index(SYSTEM) < prompt.index("1 + 1?") and "helpful" not in prompt
    assert "strftime" not in prompt and ("Today" not in prompt or "26 Jul 2024" in prompt)
    tokenizer.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(tmp_path)
    assert render_prompt(again, "1 + 1?") == prompt
    trace = Trace("t", "1 + 1?", "<think>\n1 + 1 = 2\n</think>\n<answer>\n2\n</answer>")
    item = encode(again, [trace])[0]
    assert again.decode(item.ids[item.prompt_tokens :]) == trace.text


def test_no_message_changes_nothing_and_a_template_without_room_is_named(tiny_policy: Path) -> None:
    tokenizer = load_policy(tiny_policy)[1]
    before = tokenizer.chat_template
    address(tokenizer, None)
    assert tokenizer.chat_template == before
    tokenizer.chat_template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(RairlError, match="leaves the system message out"):
        address(tokenizer, SYSTEM)
    tokenizer.chat_template = "{{ raise_exception('no system role') if messages[0].role == 'system' }}"
    with pytest.raises(RairlError, match="refuses a system message"):
        address(tokenizer, SYSTEM)
