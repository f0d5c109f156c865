"""The demo model's byte-level BPE: Qwen's rules and special tokens over a small vocabulary made by hand.

Every merge starts at a word's leading space or inside one character's bytes, so a printed word in quotes is always
spelled letter by letter, and every digit is a token of its own: that is what the model has to copy.
"""

from __future__ import annotations

import re
from typing import Any

from training import questions
from training.words import COMMON_HANZI, COMMON_WORDS

SPECIAL_TOKENS = (  # in the order of the real vocabulary, right after its last merge
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ORDINARY_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
PIECES: tuple[str, ...] = (
    "```",
    "json",
    '[{"',
    '":[',
    '],"',
    '":"',
    '"}]',
    '."',
    '"?',
    '".',
    ' "',
    "”。",
    "：“",
    "”；",
    "；第",
    "、第",
)
# Their beginnings (`us`, `as`, `sy`, `bb`) are merged in other words too. The vocabulary's `ignore_merges` is forgotten
# by the stock class, and an added token is one that the app never lets a text hold.
PIECES += ("user", "assistant", "system", "bbox")
CHAT_TEMPLATE = """{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' or 'image' in part -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part.type == 'video' or 'video' in part -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""


def bytes_as_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte, which byte-level BPE files are written in."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in printable}
    for extra, byte in enumerate(byte for byte in range(256) if byte not in table):
        table[byte] = chr(256 + extra)
    return table


def known_pieces() -> list[str]:
    """Everything worth one token: words behind a space, Chinese characters, pieces of the answers' JSON."""
    texts = [
        wording for by_language in questions.ASK.values() for wordings in by_language.values() for wording in wordings
    ]
    texts += [text for asked in questions.REFUSED.values() for text in asked] + list(questions.REFUSAL.values())
    texts += [" ".join([*questions.COLOURS, *questions.SHAPES, *(plural for plural, _ in questions.SHAPES.values())])]
    texts += [name for names in questions.COLOURS.values() for name in names]
    texts += [name for _, names in questions.SHAPES.values() for name in names]
    everything = " " + " ".join(texts).replace("{", " ").replace("}", " ")
    words = set(re.findall(r" [A-Za-z]+", everything)) | {f" {word}" for word in COMMON_WORDS.split()}
    words |= {word.lower() for word in words}
    hanzi = {character for character in everything + COMMON_HANZI if ord(character) > 0x2000}
    return [*sorted(words), *sorted(hanzi), *PIECES]


def build_tokenizer() -> Any:
    """A `Qwen2Tokenizer` with chat template; the same pieces always give the same ids."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import Qwen2Tokenizer
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    table = bytes_as_characters()
    vocabulary = {character: index for index, character in enumerate(sorted(table.values()))}
    merges: list[tuple[str, str]] = []
    for piece in known_pieces():
        spelled = "".join(table[byte] for byte in piece.encode())
        for end in range(2, len(spelled) + 1):
            if spelled[:end] not in vocabulary:
                vocabulary[spelled[:end]] = len(vocabulary)
                merges.append((spelled[: end - 1], spelled[end - 1]))
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    # Added here, not named below: the wrapper would append them in another order than the real vocabulary's.
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    bpe.add_tokens([AddedToken(token, special=False, normalized=False) for token in ORDINARY_TOKENS])
    names: Any = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None, "bos_token": None}
    tokenizer = Qwen2Tokenizer(tokenizer_object=bpe, **names)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
