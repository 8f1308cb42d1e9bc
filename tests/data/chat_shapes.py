"""Chat templates of the published shapes, in our own words, on a small byte-level tokenizer made here."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from goodheart.data.template import Template

LLAMA3 = """\
{{- bos_token -}}
{%- for m in messages -%}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + (m.content | trim) + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}
"""

CHATML = """\
{%- for m in messages -%}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

# Qwen3: turns before the last question lose their thinking; the last answer always shows some, maybe empty.
QWEN3 = """\
{%- set last = namespace(asked=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set last.asked = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- set thought = m.reasoning_content | default('', true) -%}
{%- set said = m.content -%}
{%- if not thought and '</think>' in said -%}
{%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
{%- set said = said.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{- '<|im_start|>' + m.role + '\\n' -}}
{%- if m.role == 'assistant' and loop.index0 > last.asked and (loop.last or thought) -%}
{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' -}}
{%- endif -%}
{{- said + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

GEMMA = """\
{{- bos_token -}}
{%- for m in messages -%}
{%- if m.role == 'system' -%}{{- raise_exception('System role not supported') -}}{%- endif -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}{{- raise_exception('Roles must alternate') -}}{%- endif -%}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + (m.content | trim) -}}
{{- '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""

# Phi-3: the end of the whole text follows the end of the last turn.
PHI3 = """\
{%- for m in messages -%}
{{- '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- else -%}{{- eos_token -}}{%- endif -%}
"""

PHI4 = """\
{%- for m in messages -%}
{{- '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant<|im_sep|>' -}}{%- endif -%}
"""

# A text-only template without any end token.
ALPACA = """\
{%- for m in messages -%}
{%- set name = {'user': 'Instruction', 'assistant': 'Response', 'system': 'System'}[m.role] -%}
{{- '### ' + name + ':\\n' + m.content + '\\n\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '### Response:\\n' -}}{%- endif -%}
"""

# How Llama-3 and Qwen cut text into words: newlines stay together whatever follows them (GPT-2 splits the last off).
NEWER_WORDS = r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CORPUS = [
    "The cat sat on the mat and the dog ran away from the cat, then they were friends again.\n\n你好世界 你好吗\n\n"
]


def byte_level(
    *specials: str | AddedToken,
    bos: str | None = None,
    eos: str | None = None,
    pad: str | None = None,
    template: str | None = None,
    adds_bos: bool = False,
    ordinary: tuple[str, ...] = (),
    merges: bool = True,
    words: str | None = None,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE over every byte, with some merges; words are cut as GPT-2 does unless `words` says otherwise.

    ordinary: added tokens that are not special.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if words is not None:
        split = pre_tokenizers.Split(Regex(words), behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=320 if merges else 256, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS * 4, trainer)
    named = [t for t in (bos, eos, pad) if t is not None]
    backend.add_special_tokens([*dict.fromkeys(named), *specials])
    backend.add_tokens([AddedToken(t, normalized=False) for t in ordinary])
    if adds_bos and bos is not None:
        special = [(bos, backend.token_to_id(bos))]
        backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=pad)
    tokenizer.chat_template = template
    return tokenizer


def llama3(**settings: object) -> Template:
    specials = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    named = {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>", "template": LLAMA3}
    named |= {"adds_bos": True, "words": NEWER_WORDS}
    return Template(byte_level(*specials, **{**named, **settings}))  # type: ignore[arg-type]


def chatml(template: str = CHATML, **settings: object) -> Template:
    return Template(byte_level("<|im_start|>", eos="<|im_end|>", template=template, **settings))  # type: ignore[arg-type]


def qwen3(template: str = QWEN3) -> Template:
    tokenizer = byte_level(
        "<|im_start|>", eos="<|im_end|>", pad="<|endoftext|>", template=template, ordinary=("<think>", "</think>")
    )
    return Template(tokenizer)


def gemma() -> Template:
    specials = ("<start_of_turn>", "<end_of_turn>")
    return Template(byte_level(*specials, bos="<bos>", eos="<eos>", pad="<pad>", template=GEMMA, adds_bos=True))


def phi3() -> Template:
    names = ("system", "user", "assistant", "end")
    ends = [AddedToken(f"<|{name}|>", rstrip=True, normalized=False) for name in names]
    return Template(byte_level(*ends, bos="<s>", eos="<|endoftext|>", template=PHI3))


def phi4() -> Template:
    return Template(byte_level("<|im_start|>", "<|im_sep|>", "<|im_end|>", eos="<|endoftext|>", template=PHI4))


def alpaca() -> Template:
    return Template(byte_level(eos="</s>", template=ALPACA))


def save_with(tokenizer: PreTrainedTokenizerFast, folder: Path, **files: str) -> Path:
    """Writes the tokenizer and other files beside it (`generation_config='{...}'` -> generation_config.json)."""
    tokenizer.save_pretrained(str(folder))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content)
    return folder
