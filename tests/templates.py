"""Small chat templates of our own, each with a habit that public ones have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from rlaif_cli.models import tiny

_REFUSE_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
_ALTERNATE = (
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}"
)
_FIRST_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{% else %}{% set turns = messages %}{% endif %}"
)
_ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

TEMPLATES: dict[str, str | None] = {
    "plain": ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}" + _ASK),
    # Only user and assistant in turn, no system turn, content trimmed.
    "alternating": (
        _REFUSE_SYSTEM + "{% for m in messages %}" + _ALTERNATE + "<|im_start|>"
        "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
    ),
    # The system prompt goes into the last user turn, a reply begins with a blank, there is no generation prompt.
    "system_in_last": (
        _FIRST_SYSTEM + "{% for m in turns %}" + _ALTERNATE + "{% if m['role'] == 'user' %}"
        "[INST] {{ system + '\n\n' if loop.last and system is defined }}{{ m['content'] }} [/INST]"
        "{% elif m['role'] == 'assistant' %} {{ m['content'] | trim }}<|im_end|>"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
    ),
    # The system prompt goes into the first user turn between marks; blanks around everything.
    "system_in_first": (
        _FIRST_SYSTEM + "{% for m in turns %}{% if m['role'] == 'user' %}[INST] "
        "{{ '<<SYS>>\n' + system + '\n<</SYS>>\n\n' if loop.first and system is defined }}{{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }} <|im_end|>{% endif %}{% endfor %}"
    ),
    # A system turn is left out without a word.
    "drops_system": (
        "{% for m in messages %}{% if m['role'] in ('user', 'assistant') %}<|im_start|>{{ m['role'] }}\n"
        "{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}" + _ASK
    ),
    # Content is a list of parts.
    "parts": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}"
        "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}" + _ASK
    ),
    # A reply is written after closed thoughts.
    "closed_thoughts": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}"
        "<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}" + _ASK
    ),
    # The generation prompt opens thoughts.
    "opens_thoughts": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'].split('</think>')[-1] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    ),
    # Another token after the one that ends a turn, with an "x" in its name.
    "text_end": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}<|endoftext|>{% endif %}"
    ),
    # A reply stands in a channel of its own.
    "channels": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}{{ '<|channel|>final' if m['role'] == 'assistant' }}"
        "<|message|>{{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
    ),
    # No control tokens but the one that ends a reply.
    "names": (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}ASSISTANT: {{ m['content'] }}<|im_end|>"
        "{% else %}{{ 'USER: ' if m['role'] == 'user' }}{{ m['content'] }} {% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    # Nothing ends a reply but the next turn's first token.
    "next_turn": (
        "{% for m in messages %}{{ '<|im_start|>' if m['role'] == 'assistant' else '<|im_end|>' }}{{ m['role'] }}\n"
        "{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    # Reasoning on demand, as Qwen3's: off, the generation prompt holds empty thoughts; on, the model opens them.
    # Only the last reply shows its thoughts.
    "thinks_on_demand": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}"
        "<think>\n{{ (m.reasoning_content or '') | trim }}\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    ),
    # The generation prompt opens thoughts and ends right there; replies keep what follows them, trimmed.
    "opens_thoughts_at_the_end": (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}<|im_start|>assistant\n"
        "{{ m['content'].split('</think>')[-1] | trim }}<|im_end|>\n{% else %}<|im_start|>{{ m['role'] }}\n"
        "{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
    ),
    # Channels as in Harmony: the reasoning is a message of its own, and the marks are special tokens.
    "harmony": (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{% if m.thinking and loop.last %}"
        "<|im_start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
        "<|im_start|>assistant<|channel|>final<|message|>{{ m['content'] }}"
        "{{ '<|im_end|>' if loop.last else '<|end|>' }}"
        "{% else %}<|im_start|>{{ m['role'] }}<|message|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
    ),
    # The marks of reasoning are special tokens, which decoding leaves out.
    "special_marks": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m.reasoning %}[THINK]{{ m.reasoning }}[/THINK]"
        "{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}" + _ASK
    ),
    # The marks of reasoning are ordinary text.
    "marks_in_words": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\nHere are my reasoning steps:\n{% endif %}"
        "{# [BEGIN FINAL RESPONSE] #}"
    ),
    # Only transformers knows the block around a reply.
    "generation_block": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
        "{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
        + _ASK
    ),
    # The system prompt is part of the first user turn, and everything is trimmed.
    "system_folded": (
        _FIRST_SYSTEM + "{% for m in turns %}<|im_start|>{{ m['role'] }}\n"
        "{{ (system | trim) + '\n\n' if loop.first and system is defined }}{{ m['content'] | trim }}<|im_end|>\n"
        "{% endfor %}" + _ASK
    ),
    # The template writes the token that begins a text, and a default system prompt where there is none.
    "default_system": (
        "<|begin|>{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}" + _ASK
    ),
    # The token that ends a turn is an added token, but not a special one.
    "ordinary_end": (
        "{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
    ),
    # A base model: no template, and a tokenizer that begins every text with a token.
    "none": None,
}


# Added tokens beside those of the tiny model: name -> (special ones, others).
_ADDED: dict[str, tuple[list[str], list[str]]] = {
    "harmony": (["<|channel|>", "<|message|>", "<|end|>"], []),
    "special_marks": (["[THINK]", "[/THINK]"], []),
    "default_system": (["<|begin|>"], []),
    "ordinary_end": ([], ["<start_of_turn>", "<end_of_turn>"]),
    "thinks_on_demand": ([], ["<think>", "</think>"]),
    "opens_thoughts": ([], ["<think>", "</think>"]),
}


def checkpoint(folder: Path, name: str) -> Path:
    """A tiny random model with one of the templates."""
    tiny.build(folder)
    if name in _ADDED:
        _add_tokens(folder, *_ADDED[name])
    (folder / "chat_template.jinja").unlink()
    template = TEMPLATES[name]
    if template is None:
        _begin_with_bos(folder)
    else:
        (folder / "chat_template.jinja").write_text(template, "utf-8")
    return folder


def _add_tokens(folder: Path, special: list[str], ordinary: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *special]})
    tokenizer.add_tokens(ordinary)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if "<end_of_turn>" in ordinary:
        model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _begin_with_bos(folder: Path) -> None:
    path = folder / "tokenizer.json"
    spec: dict[str, Any] = json.loads(path.read_text("utf-8"))
    begin = next(token for token in spec["added_tokens"] if token["content"] == "<|im_start|>")
    token = {"SpecialToken": {"id": begin["content"], "type_id": 0}}
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [token, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [token, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            begin["content"]: {"id": begin["content"], "ids": [begin["id"]], "tokens": [begin["content"]]}
        },
    }
    path.write_text(json.dumps(spec), "utf-8")
