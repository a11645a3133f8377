"""Small tokenizers with the structure of real families, to tell the project's rendering by.

What matters is copied from the families and the vocabulary is small: which literals are control
tokens and where they lie in the vocabulary, who writes a space before a segment, who trims, who
refuses a system message, who asks for today's date. The texts they learn from contain the control
tokens' literals, so that merges across the borders of a literal exist, as they do in real ones.

`Family.text_of` turns ids back into text without the library's decoders, which lose spaces.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

from chat_templates import CHATML, GEMMA, LLAMA2, LLAMA3, MISTRAL_V1, MISTRAL_V3, PHI3
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "The quick brown fox jumps over the lazy dog; it isn't 12345 or 67 steps away.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))\n",
    "You are a careful assistant. Answer in one word: is the sky blue? Yes.",
    "Der schnelle Fuchs, naïve café, 你好世界, Привет мир, e = mc^2 <b>bold</b> -> x",
    "system\nuser\nassistant\nmodel\n [INST] <<SYS>>\n<</SYS>>\n\n [/INST] Human: Assistant:",
    "<|im_start|>user\n<|im_end|><|endoftext|> <think>so</think> <tool_call> <|eot_id|> <s> </s>",
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n",
]
WORDS = r"[ ▁]?\p{L}+|\p{N}{1,3}|[ ▁]?[^\s▁\p{L}\p{N}]+|\n+|\s+"
PINNED = "26 Jul 2024"


@dataclass(frozen=True)
class Family:
    """A tokenizer and what is known of its structure.

    Attributes:
        name: of the family.
        tokenizer: small and trained, with the family's chat template.
        prefix: the segments (text between control tokens) that the tokenizer puts a space before:
            `segment` every one, `first` the one that begins the text, `none` no one.
        system: whether the template takes a system message.
        special: literals of the tokens marked special.
        added: literals of other added tokens.
        spaces: literals of added tokens that are runs of white space.
        bytes_level: pieces are bytes; else they are text with `▁` for a space.
    """

    name: str
    tokenizer: PreTrainedTokenizerFast
    prefix: str
    system: bool
    special: tuple[str, ...]
    added: tuple[str, ...] = ()
    spaces: tuple[str, ...] = ()
    bytes_level: bool = False

    @property
    def literals(self) -> tuple[str, ...]:
        return self.special + self.added

    @cached_property
    def control_ids(self) -> dict[int, str]:
        """Literal by id, of special and added tokens, white space excepted."""
        return {self.tokenizer.convert_tokens_to_ids(text): text for text in self.literals}

    def controls(self, ids: Sequence[int]) -> list[str]:
        """The sequence of control tokens among ids."""
        return [self.control_ids[token] for token in ids if token in self.control_ids]

    def render(self, messages: list[dict[str, str]], generation: bool) -> str:
        """The library's own rendering, on the day that the project pins."""
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation, date_string=PINNED
        )

    def library_ids(self, text: str) -> list[int]:
        """The library's own ids of a text, control literals read as control tokens."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def text_of(self, ids: Sequence[int], before: str = "") -> str:
        """The text of ids that continue a rendered text `before`."""
        prefixed = self.prefix == "segment" or (self.prefix == "first" and not before)
        prefixed = prefixed and (not before or before.endswith(self.literals))
        text, segment = "", []
        for token in ids:
            if token not in self.control_ids:
                segment.append(self.tokenizer.convert_ids_to_tokens(token))
                continue
            text += self._join(segment, prefixed) + self.control_ids[token]
            segment, prefixed = [], self.prefix == "segment"
        return text + self._join(segment, prefixed)

    def segments(self, ids: Sequence[int]) -> list[list[int]]:
        """The runs of ids between control tokens, without the one before the first."""
        runs: list[list[int]] = []
        for token in ids:
            if token in self.control_ids:
                runs.append([])
            elif runs:
                runs[-1].append(token)
        return [run for run in runs if run]

    def plain_ids(self, text: str) -> list[int]:
        """The ids of a segment by the same model without any control token in its vocabulary."""
        return self._without_controls.encode(text, add_special_tokens=False).ids

    @cached_property
    def _without_controls(self) -> Tokenizer:
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        model, gone = state["model"], set(self.literals)
        model["vocab"] = {text: id_ for text, id_ in model["vocab"].items() if text not in gone}
        model["merges"] = [pair for pair in model["merges"] if "".join(pair) not in gone]
        model["unk_token"] = state["post_processor"] = None
        if self.prefix == "first":
            state["pre_tokenizer"]["prepend_scheme"] = "never"
        spaces = [token for token in state["added_tokens"] if token["content"] in self.spaces]
        return Tokenizer.from_str(json.dumps({**state, "added_tokens": spaces}))

    def _join(self, pieces: Sequence[str], prefixed: bool) -> str:
        if self.bytes_level:
            letters = _letters_of_bytes()
            return bytes(letters[char] for piece in pieces for char in piece).decode()
        raw = b"".join(
            bytes([int(piece[3:5], 16)])
            if len(piece) == 6 and piece.startswith("<0x")
            else piece.replace("▁", " ").encode()
            for piece in pieces
        )
        return raw.decode().removeprefix(" ") if prefixed else raw.decode()


@cache
def family(name: str) -> Family:
    """A family by name, trained once."""
    return MAKERS[name]()


def with_template(own: Family, template: str | None, **changes: str) -> PreTrainedTokenizerFast:
    """A copy of a family's tokenizer with another template, or other special tokens."""
    words = own.tokenizer.special_tokens_map.items()
    names = {key: str(value) for key, value in words if key.endswith("_token")}
    copy = Tokenizer.from_str(own.tokenizer.backend_tokenizer.to_str())
    return _wrap(copy, template, {**names, **changes})


BASE = ("<unk>", "<s>", "</s>")


def _like_llama2(
    name: str,
    template: str,
    *,
    system: bool = True,
    marks: Sequence[str] = (),
    marks_are_pieces: bool = False,
    rstrip: bool = False,
    bos: bool = True,
    eos: str = "</s>",
) -> Family:
    """Pieces of SentencePiece with `<s>` before, and control marks of the family's own.

    They are pieces of the vocabulary (then a space begins the text only), or added behind it.
    """
    tokenizer = _pieces((*BASE, *marks) if marks_are_pieces else BASE,
                        "metaspace" if marks_are_pieces else "prepend")  # fmt: skip
    if not marks_are_pieces:
        tokenizer.add_special_tokens(_added(marks, special=True, rstrip=rstrip))
    if bos:
        _begin_with(tokenizer, "<s>")
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": eos}
    prefix = "first" if marks_are_pieces else "segment"
    return Family(name, _wrap(tokenizer, template, names), prefix, system, (*BASE, *marks))


def _llama3() -> Family:
    special = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
               "<|eot_id|>", "<|python_tag|>")  # fmt: skip
    tokenizer = _byte_level(r"\p{N}{1,3}", ignore_merges=True)
    tokenizer.add_special_tokens(_added(special, special=True))
    _begin_with(tokenizer, special[0])
    names = {"bos_token": special[0], "eos_token": "<|eot_id|>"}
    wrapped = _wrap(tokenizer, LLAMA3, names)
    return Family("llama3", wrapped, "none", True, special, bytes_level=True)


def _qwen() -> Family:
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    added = ("<think>", "</think>", "<tool_call>")
    tokenizer = _byte_level(r"\p{N}", ignore_merges=False)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(_added(special, special=True))
    tokenizer.add_tokens(_added(added, special=False))
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    wrapped = _wrap(tokenizer, CHATML, names)
    return Family("qwen", wrapped, "none", True, special, added, bytes_level=True)


def _gemma() -> Family:
    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
    added = ("<mask>", "<unused0>", "<h1>")
    spaces = ("\n\n", "\n\n\n", "▁▁", "▁▁▁", "▁▁▁▁")
    tokenizer = _pieces(special, "replace", added, spaces)
    _begin_with(tokenizer, "<bos>")
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    wrapped = _wrap(tokenizer, GEMMA, names)
    return Family("gemma", wrapped, "none", False, special, added, spaces)


MAKERS = {
    "llama2": partial(_like_llama2, "llama2", LLAMA2),
    "llama3": _llama3,
    "mistral_v1": partial(_like_llama2, "mistral_v1", MISTRAL_V1, system=False),
    "mistral_v3": partial(_like_llama2, "mistral_v3", MISTRAL_V3, marks_are_pieces=True,
                          marks=("[INST]", "[/INST]", "[TOOL_CALLS]")),
    "qwen": _qwen,
    "gemma": _gemma,
    # ChatML marks added behind a Llama-2 vocabulary, as fine-tunes of Mistral have them.
    "hermes": partial(_like_llama2, "hermes", CHATML, marks=("<|im_end|>", "<|im_start|>"),
                      eos="<|im_end|>"),
    # A Llama-2 vocabulary with marks that swallow the white space after them.
    "phi3": partial(_like_llama2, "phi3", PHI3, rstrip=True, bos=False, eos="<|endoftext|>",
                    marks=("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")),
}  # fmt: skip
"""The six families that references come from; `hermes` and `phi3` mix their structures."""


def _pieces(
    special: Sequence[str], space: str, added: Sequence[str] = (), spaces: Sequence[str] = ()
) -> Tokenizer:
    """Like SentencePiece BPE with byte fallback; its merges can even make `<s>` and `<h1>`.

    `space` says who turns a space into `▁`: a normalizer that also begins every segment with one
    (`prepend`), one that does not (`replace`), or a pre-tokenizer (`metaspace`).
    """
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), "isolated")
    learned = _learn(learner, [f" {text}" for text in TEXTS], 420)
    own = [("▁", "▁"), ("▁▁", "▁"), ("▁▁", "▁▁"), ("s", ">"), ("<", "s>"), ("</", "s>")]
    own += [("\n", "\n"), ("\n\n", "\n"), ("h", "1"), ("h1", ">"), ("<", "h1>")]
    merges = list(dict.fromkeys([*map(tuple, learned["merges"]), ("<", "/"), *own]))
    first = [*special, *added, *spaces, *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted({char for text in TEXTS for char in text.replace(" ", "▁")})
    made = [left + right for left, right in merges]
    vocab: dict[str, int] = {}
    for piece in [*first, *letters, *learned["vocab"], *made]:
        vocab.setdefault(piece, len(vocab))
    model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    if space == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    else:
        replace = normalizers.Replace(" ", "▁")
        prepend = normalizers.Sequence([normalizers.Prepend("▁"), replace])
        tokenizer.normalizer = prepend if space == "prepend" else replace
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(_added(special, special=True))
    tokenizer.add_tokens(_added([*added, *spaces], special=False))
    return tokenizer


def _byte_level(digits: str, *, ignore_merges: bool) -> Tokenizer:
    """Byte-level BPE behind a splitting pattern; control tokens come after the vocabulary."""
    pattern = (
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])
    tokenizer.decoder = decoders.ByteLevel()
    learned = _learn(tokenizer, TEXTS, 600, pre_tokenizers.ByteLevel.alphabet())
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer.model = models.BPE(learned["vocab"], merges, ignore_merges=ignore_merges)
    return tokenizer


def _learn(
    learner: Tokenizer, texts: Sequence[str], size: int, alphabet: Sequence[str] = ()
) -> dict[str, Any]:
    words = {"initial_alphabet": list(alphabet), "show_progress": False}
    learner.train_from_iterator(texts, BpeTrainer(vocab_size=size, **words))
    return json.loads(learner.to_str())["model"]


def _added(literals: Sequence[str], *, special: bool, rstrip: bool = False) -> list[AddedToken]:
    return [AddedToken(text, special=special, normalized=False, rstrip=rstrip) for text in literals]


def _begin_with(tokenizer: Tokenizer, bos: str) -> None:
    tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )


def _wrap(
    tokenizer: Tokenizer, template: str | None, names: dict[str, str]
) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **names)


@cache
def _letters_of_bytes() -> dict[str, int]:
    """The byte behind each letter of a byte-level vocabulary (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {chr(byte): byte for byte in shown}
    return letters | {chr(256 + index): byte for index, byte in enumerate(hidden)}
