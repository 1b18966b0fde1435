"""Small chat templates, one for each family's habits, and a tokenizer of bytes and a few pairs for them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny import save_tiny

SPECIALS = ["<|im_start|>", "<|im_end|>", "<|begin|>", "<|head|>", "<|neck|>", "<|eot|>", "<|python_tag|>"]

GENERATION = "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    + GENERATION
)
# SmolLM2: a default system message, no tools.
PLAIN_CHATML = (
    "{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    + CHATML
)
DEFINITIONS = r"""
{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{%- if tools %}
    {{- '<|im_start|>system\n' + system + '\n<tools>' }}
    {%- for tool in tools %}{{ '\n' + (tool | tojson) }}{% endfor %}
    {{- '\n</tools><|im_end|>\n' }}
{%- elif system %}
    {{- '<|im_start|>system\n' + system + '<|im_end|>\n' }}
{%- endif %}"""
CALLS = r"""
    {%- for call in m.tool_calls %}
        {{- ('\n' if content or not loop.first else '') + '<tool_call>\n{"name": "' + call.function.name }}
        {{- '", "arguments": ' + (call.function.arguments | tojson) + '}\n</tool_call>' }}
    {%- endfor %}"""
RESULT = r"""
    {{- '<|im_start|>user' if loop.first or loop.previtem.role != 'tool' else '' }}
    {{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
    {{- '<|im_end|>\n' if loop.last or loop.nextitem.role != 'tool' else '' }}"""
# Qwen2.5: results in a row are one message of the user.
MERGING = (
    DEFINITIONS
    + "{%- for m in messages %}{% set content = m.content %}{% if m.role == 'tool' %}"
    + RESULT
    + r"{%- elif m.role != 'system' or not loop.first %}{{ '<|im_start|>' + m.role + '\n' + content }}"
    + CALLS
    + r"{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    + GENERATION
)
# Qwen3: answers before the last question lose their thinking; the last one gains an empty block, and so does
# the generation prompt with ``thinks=False``.
STRIPPING = (
    DEFINITIONS
    + r"""
{%- set ns = namespace(asked=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.asked = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- set content = m.content %}
    {%- if m.role == 'tool' %}"""
    + RESULT
    + r"""
    {%- elif m.role != 'system' or not loop.first %}
    {{- '<|im_start|>' + m.role + '\n' }}
    {%- if m.role == 'assistant' %}
        {%- set thought = content.rpartition('</think>')[0].split('<think>')[-1] %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- if loop.index0 > ns.asked and (loop.last or thought) %}
            {{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}
        {%- endif %}
        {{- content }}"""
    + CALLS
    + r"""
    {%- else %}{{ content }}{% endif %}
    {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}"""
    + GENERATION
    + r"""
{%- set block = '<think>\n\n</think>\n\n' %}
{%- if add_generation_prompt and thinks is defined and not thinks %}{{ block }}{% endif %}"""
)
# Hermes: a result closes differently when it is the last message; no newline after its end token.
CLOSING = MERGING.replace(
    RESULT,
    r"""
    {{- '<|im_start|>tool\n' if loop.first or loop.previtem.role != 'tool' else '' }}
    {{- '<tool_response>\n' + m.content + '\n</tool_response>' + ('' if loop.last else '\n') }}
    {{- '<|im_end|>' if loop.last or loop.nextitem.role != 'tool' else '' }}""",
)
# Llama 3: a date, definitions in the first question, one call without text around it, results as JSON texts.
HEADED = r"""
{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{{- '<|begin|><|head|>system<|neck|>\n\nToday: ' }}
{{- date_string if date_string is defined else strftime_now('%d %b %Y') }}
{{- '\n\n' + (system | trim) + '<|eot|>' }}
{%- set ns = namespace(asked=false) %}
{%- for m in messages %}
    {%- if m.role == 'tool' %}
        {{- '<|head|>ipython<|neck|>\n\n' + (m.content | tojson) + '<|eot|>' }}
    {%- elif 'tool_calls' in m %}
        {%- if m.tool_calls | length != 1 %}{{ raise_exception('one call at once') }}{% endif %}
        {%- set called = m.tool_calls[0].function %}
        {{- '<|head|>assistant<|neck|>\n\n{"name": "' + called.name + '", "parameters": ' }}
        {{- (called.arguments | tojson) + '}<|eot|>' }}
    {%- elif m.role != 'system' or not loop.first %}
        {{- '<|head|>' + m.role + '<|neck|>\n\n' }}
        {%- if m.role == 'user' and tools and not ns.asked %}
            {%- set ns.asked = true %}
            {%- for tool in tools %}{{ (tool | tojson(indent=4)) + '\n\n' }}{% endfor %}
        {%- endif %}
        {{- (m.content | trim) + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|head|>assistant<|neck|>\n\n' }}{% endif %}"""
COUNTING = "{{- 'Messages: ' + (messages | length | string) + '\n' }}" + MERGING
TEMPLATES: dict[str, str | None] = {
    "plain": None,
    "smollm2": PLAIN_CHATML,
    "qwen2.5": MERGING,
    "qwen3": STRIPPING,
    "hermes": CLOSING,
    "llama3": HEADED,
}


@cache
def _core() -> str:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIALS,
    )
    core.train_from_iterator(["what time?\n<", "a table for two?\n\n<", "user\n\nassistant\n\n"] * 4, trainer)
    return core.to_str()


def tokenizer(template: str | None, ends: bool = True) -> Any:
    """A tokenizer of 400 ids with this template; ``?`` + newline is one token, as in Qwen2.5.

    ``ends``: whether it has an end token.
    """
    end = ("<|eot|>" if template == HEADED else "<|im_end|>") if ends else None
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_core()),
        eos_token=end,
        additional_special_tokens=[special for special in SPECIALS if special != end],
    )
    made.chat_template = template
    return made


def save_chat_model(folder: Path, context: int) -> Path:
    """A model of 400 ids with a template that knows tools."""
    made = tokenizer(TEMPLATES["qwen2.5"])
    shape = {"hidden_size": 32, "intermediate_size": 64, "head_dim": 8, "max_position_embeddings": context}
    save_tiny(folder, vocab_size=400, eos_token_id=made.eos_token_id, **shape)
    made.save_pretrained(folder)
    return folder
