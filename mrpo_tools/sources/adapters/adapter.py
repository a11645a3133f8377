"""What an adapter is, and the shapes of columns that it is chosen by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mrpo_tools.groups import Response
from mrpo_tools.sources.adapters.conversation import Prompt
from mrpo_tools.sources.adapters.fields import Field, as_number, as_truth
from mrpo_tools.sources.adapters.tools import tools_of

Parsed = tuple[Prompt, list[Response]]


@dataclass(frozen=True)
class Shape:
    """What a column holds.

    Attributes:
        words: how messages call it.
        fits: whether a value has the shape; looks at the first element of a list only.
    """

    words: str
    fits: Callable[[Any], bool]


@dataclass(frozen=True)
class Adapter:
    """How the rows of one format become groups.

    Attributes:
        name: what `--data-adapter` takes.
        about: one line for people.
        columns: the columns that a row must have, with their shapes; detection goes by them.
        read: a row to the prompt and its responses; where there are `scores`, it also takes the
            wished one of them.
        scores: the kinds of score there are; the first is the default.
        splits: what some splits of the data are called here; None for one that repeats the same
            prompts in another form and is left out. All others keep their names.
        one_response_a_row: rows of one prompt make up its group.
        several_a_row: a row holds several groups, `read` returns a list of them.
        whole: the columns hold the conversation too, so none stands in another column.
        verdict: the columns of two responses in no order, and the one that says which is better;
            empty where the order says it.
        offers: the column whose object offers the tools; empty where the row does.
    """

    name: str
    about: str
    columns: Mapping[str, Shape]
    read: Callable[..., Parsed | list[Parsed]]
    scores: tuple[str, ...] = ()
    splits: Mapping[str, str | None] = field(default_factory=dict)
    one_response_a_row: bool = False
    several_a_row: bool = False
    whole: bool = False
    verdict: tuple[str, ...] = ()
    offers: str = ""

    def tools(self, row: Field) -> str | None:
        """JSON text of the tools that a row's prompt offers."""
        offering = row[self.offers] if self.offers else row
        return tools_of(offering["tools"]) if offering.has("tools") else None

    def parse(self, row: Field, score: str) -> list[Parsed]:
        """The prompts and responses of a row; `score` matters where there are several kinds."""
        parsed = self.read(row, score) if self.scores else self.read(row)
        return parsed if isinstance(parsed, list) else [parsed]


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) and value else None


def _messages(value: Any) -> bool:
    first = _first(value)
    return isinstance(first, dict) and ("role" in first or "from" in first)


def _holding(key: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(_first(value), dict) and key in _first(value)


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "Assistant:" in value


def _is_json_list(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("[")


def _holds_messages(value: Any) -> bool:
    return isinstance(value, dict) and _messages(value.get("messages"))


TEXT = Shape("text", lambda value: isinstance(value, str))
TEXTS = Shape("[text, …]", lambda value: isinstance(_first(value), str))
NUMBER = Shape("number", lambda value: as_number(value) is not None)
NUMBERS = Shape("[number, …]", lambda value: as_number(_first(value)) is not None)
LABEL = Shape("true or false", lambda value: as_truth(value) is not None)
WINNER = Shape("name or number", lambda value: isinstance(value, str) or NUMBER.fits(value))
MESSAGE = Shape("message", lambda value: _messages([value]))
MESSAGES = Shape("[message, …]", _messages)
CONVERSATIONS = Shape("[[message, …], …]", lambda value: _messages(_first(value)))
TRANSCRIPT = Shape("transcript", _is_transcript)
CHOSEN_REJECTED = Shape("[chosen, rejected]", lambda value: TEXTS.fits(value) and len(value) == 2)
JSON_TEXTS = Shape("JSON [text, …]", lambda value: TEXTS.fits(value) or _is_json_list(value))
JSON_MESSAGES = Shape(
    "[message, …] or JSON of it", lambda value: MESSAGES.fits(value) or _is_json_list(value)
)
OBJECT_OF_MESSAGES = Shape("{messages}", _holds_messages)
TREE = Shape("{text, role, replies}", lambda value: _holding("replies")([value]))
PROMPT = Shape("text or [message, …]", lambda value: TEXT.fits(value) or MESSAGES.fits(value))
ANSWER = Shape("text or message", lambda value: PROMPT.fits(value) or MESSAGE.fits(value))


def objects_with(*keys: str) -> Shape:
    """A list of objects that have at least these keys."""
    words = f"[{{{', '.join(keys)}}}, …]"
    return Shape(words, lambda value: all(_holding(key)(value) for key in keys))
