"""What there is to say of a key of a recipe: its meaning, its default, the names it may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

from mrpo_tools import words

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


def facts_of(field: FieldInfo) -> dict[str, Any]:
    """Meaning, default and names to choose among of a key."""
    return {
        "meaning": field.description,
        "default": field.get_default(call_default_factory=True, validated_data={}),
        "choices": _choices(field.annotation),
    }


def _choices(annotation: Any) -> list[Any]:
    """The names in a type: those of a `Literal` in it."""
    parts = get_args(annotation)
    if parts and not any(isinstance(part, type) or get_args(part) for part in parts):
        return list(parts)
    return [name for part in parts for name in _choices(part)]


def phrases_of(annotation: Any) -> Mapping[str, str]:
    """What the names in a type mean; empty where it has none of `words`."""
    of = (annotation, *get_args(annotation))
    return next((words.phrases(part) for part in of if words.phrases(part)), {})
