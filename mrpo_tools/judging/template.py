"""What a judge is asked: a text file with a header, a system message and a user message.

    labels: A, B, tie
    ---
    You compare two answers …
    ---
    {{prompt}} … {{first}} … {{second}}

Two labels are for the answer shown first and for the one shown second; a third is a tie; five go
from the first much better to the second much better, the tie in the middle; `1-10` are ratings of
one answer, `{{response}}`. What is filled in is never read as a place to fill. `{{mark}}` is a word
that the filled-in texts cannot hold, to fence them in.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

from mrpo_tools.errors import UsageError, did_you_mean
from mrpo_tools.groups import content_id

DEFAULT, RATING = "pairwise", "rating"
"""The presets that are meant where none is named: of two answers, and of one."""
_PLACE = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_STRENGTHS: Mapping[int, tuple[float, ...]] = {
    2: (1.0, -1.0),
    3: (1.0, -1.0, 0.0),
    5: (1.0, 0.5, 0.0, -0.5, -1.0),
}
"""By how many labels there are, how far each prefers the answer shown first."""
_FORM = "see docs/judging.md: `labels: A, B, tie`, ---, a system message, ---, a user message"


@dataclass(frozen=True)
class Template:
    """A question to a judge, before it is filled in.

    Attributes:
        name: of the preset, or of the file.
        labels: each with its number: a preference for the answer shown first, −1 to 1; empty
            where the answer is a rating.
        ratings: the lowest and the highest one; None where answers are compared.
        system: message; may be empty.
        user: message.
        hash: SHA-256 of the file.
    """

    name: str
    labels: Mapping[str, float]
    ratings: tuple[int, int] | None
    system: str
    user: str
    hash: str

    @cached_property
    def places(self) -> frozenset[str]:
        """What is filled in."""
        return frozenset(_PLACE.findall(self.system + self.user))

    def messages(self, texts: Mapping[str, str], repeat: int = 0) -> list[dict[str, str]]:
        """The chat messages of one question.

        Args:
            texts: by place.
            repeat: another one has another mark, so that no server answers from memory.
        """
        mark = content_id([*sorted(texts.items()), repeat])[:12]
        filled = {**texts, "mark": mark}

        def fill(text: str) -> str:
            return _PLACE.sub(lambda place: filled[place[1]], text)

        turns = [{"role": "system", "content": fill(self.system)}] if self.system else []
        return [*turns, {"role": "user", "content": fill(self.user)}]


def presets() -> list[str]:
    """Their names."""
    folder = resources.files("mrpo_tools.judging") / "templates"
    return sorted(Path(file.name).stem for file in folder.iterdir() if file.name.endswith(".txt"))


def load_template(word: str, *, of_pairs: bool = True) -> Template:
    """The preset of a name, or a file of the user's own.

    Args:
        word: a name or a path.
        of_pairs: whether two answers are to be compared, or one is rated.

    Raises:
        UsageError: there is none, it cannot be used, or it is of the other kind.
    """
    names = presets()
    if word in names:
        file = resources.files("mrpo_tools.judging") / "templates" / f"{word}.txt"
        template = _parse(word, file.read_bytes())
    else:
        try:
            content = Path(word).read_bytes()
        except OSError:
            raise UsageError(
                f"no template {word!r}: neither a preset nor a file that can be read",
                did_you_mean(word, names),
            ) from None
        template = _parse(Path(word).stem, content)
    if (template.ratings is None) != of_pairs:
        kind = "rates one answer" if of_pairs else "compares two answers"
        raise UsageError(
            f"template {word!r} {kind}",
            f"--template {DEFAULT if of_pairs else RATING}",
        )
    return template


def _parse(name: str, content: bytes) -> Template:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise UsageError(f"template {name!r} is no text", _FORM) from None
    parts = re.split(r"^---[ \t]*\r?\n", text, maxsplit=2, flags=re.MULTILINE)
    header = re.fullmatch(r"\s*labels:([^\n]*)\s*", parts[0])
    if len(parts) != 3 or header is None:
        raise UsageError(f"template {name!r} is not labels, system message, user message", _FORM)
    labels, ratings = _labels(name, header[1])
    hashed = hashlib.sha256(content).hexdigest()
    template = Template(name, labels, ratings, parts[1].strip(), parts[2].strip(), hashed)
    needed = {"prompt", "response"} if ratings else {"prompt", "first", "second"}
    if (missing := needed - template.places) or (extra := template.places - needed - {"mark"}):
        wrong = f"lacks {_shown(missing)}" if missing else f"has unknown {_shown(extra)}"
        raise UsageError(f"template {name!r} {wrong}", _FORM)
    return template


def _shown(places: frozenset[str] | set[str]) -> str:
    return ", ".join(f"{{{{{place}}}}}" for place in sorted(places))


def _labels(name: str, line: str) -> tuple[dict[str, float], tuple[int, int] | None]:
    span = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", line)
    if span and int(span[1]) < int(span[2]):
        return {}, (int(span[1]), int(span[2]))
    labels = [label.strip() for label in line.split(",")]
    if len(set(labels)) != len(labels) or len(labels) not in _STRENGTHS or not all(labels):
        raise UsageError(f"template {name!r}: two, three or five labels, or LOW-HIGH", _FORM)
    return dict(zip(labels, _STRENGTHS[len(labels)], strict=True)), None
