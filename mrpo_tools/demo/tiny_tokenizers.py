"""Three small tokenizers of really different kinds, each with its own chat template.

They differ where tokenizers of real families differ, so that whatever mixes up two references'
tokens shows in the demo: the token of a space, what `12` is made of, who begins with BOS, which
marks of a template are control tokens, and who refuses a system message.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

LLAMA_TEMPLATE = (
    "{%- if messages[0].role == 'system' -%}"
    "{%- set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' -%}"
    "{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set system = '' -%}{%- set turns = messages -%}{%- endif -%}"
    "{%- for turn in turns -%}"
    "{%- if turn.role == 'user' -%}"
    "{{- bos_token + '[INST] ' + (system if loop.first else '') + turn.content + ' [/INST]' -}}"
    "{%- else -%}{{- ' ' + turn.content + ' ' + eos_token -}}{%- endif -%}"
    "{%- endfor -%}"
)
MISTRAL_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for turn in messages -%}"
    "{%- if turn.role == 'user' -%}{{- '[INST] ' + turn.content + '[/INST]' -}}"
    "{%- elif turn.role == 'assistant' -%}{{- ' ' + turn.content + eos_token -}}"
    "{%- else -%}{{- raise_exception('Only user and assistant roles are supported!') -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
)
QWEN_TEMPLATE = (
    "{%- for turn in messages -%}"
    "{{- '<|im_start|>' + turn.role + '\n' + turn.content + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
# What a template adds as plain text: learned with the texts, or it would fall into letters.
LLAMA_MARKS = "[INST] <<SYS>>\n\n<</SYS>>\n\n [/INST]"
MISTRAL_MARKS = "\n\n"
QWEN_MARKS = "system\n user\n assistant\n"


def llama_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Like SentencePiece BPE: a space is `▁`, unknown characters are bytes, BOS begins a text."""
    special = ["<unk>", "<s>", "</s>"]
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    # Words are split for learning only: merges then stay inside words without a pre-tokenizer.
    learner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    _learn(learner, [*texts, *[LLAMA_MARKS] * len(texts)], 320, [])
    learned = json.loads(learner.to_str())["model"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    merges = [tuple(pair) for pair in learned["merges"]]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = learner.normalizer
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    _begin_with_bos(tokenizer, special)
    return _wrap(tokenizer, LLAMA_TEMPLATE, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def mistral_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Metaspace BPE with `[INST]` as a control token; its template refuses a system message."""
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace("▁", prepend_scheme="first"),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace("▁", prepend_scheme="first")
    _learn(tokenizer, [*texts, MISTRAL_MARKS], 420, special)
    _begin_with_bos(tokenizer, special)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return _wrap(tokenizer, MISTRAL_TEMPLATE, **names, additional_special_tokens=special[3:])


def qwen_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE that parts a number from the space before it; ChatML, and no BOS at all."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts = [*texts, *[QWEN_MARKS] * len(texts)]
    _learn(tokenizer, texts, 640, special, pre_tokenizers.ByteLevel.alphabet())
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return _wrap(tokenizer, QWEN_TEMPLATE, **names, additional_special_tokens=special[1:2])


TOKENIZERS: dict[str, Callable[[Sequence[str]], PreTrainedTokenizerFast]] = {
    "llama": llama_tokenizer,
    "mistral": mistral_tokenizer,
    "qwen": qwen_tokenizer,
}


def _learn(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    size: int,
    special: Sequence[str],
    alphabet: Sequence[str] = (),
) -> None:
    """Learn merges until the vocabulary has `size` entries or the texts have no more pairs."""
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=list(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)


def _begin_with_bos(tokenizer: Tokenizer, special: Sequence[str]) -> None:
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in special]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", special.index("<s>"))]
    )


def _wrap(tokenizer: Tokenizer, template: str, **names: str | list[str]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **names)
