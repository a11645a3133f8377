"""`mrpo recipe`: every key of a recipe, with what it means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

import click

from mrpo_tools import words
from mrpo_tools.cli.completion import recipe_keys
from mrpo_tools.cli.help import Command
from mrpo_tools.cli.options import json_option, print_json

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

SECTIONS = {
    "loss": "What is optimised",
    "beta": "The objective's own hyper-parameters: `mrpo losses NAME` has their defaults",
    "finetuning": "How the policy is trained",
    "eval_steps": "What is measured while it trains",
}
"""The first key of each part of a recipe, and the part's name."""


@click.command(cls=Command)
@click.argument("key", required=False, shell_complete=recipe_keys)
@json_option
def recipe(*, key: str | None, as_json: bool) -> None:
    """Print a recipe with every key and its default, or explain one key.

    \b
    Example:
        mrpo recipe > recipe.yaml
        mrpo recipe epsilon_max
    """
    from mrpo_tools.config import Recipe
    from mrpo_tools.errors import UsageError, did_you_mean

    if key is None:
        if as_json:
            print_json({name: facts_of(field) for name, field in Recipe.model_fields.items()})
            return
        print(recipe_text(), end="")
        return
    if key not in Recipe.model_fields:
        near = did_you_mean(key, Recipe.model_fields)
        raise UsageError(f"a recipe has no key {key!r}", near or "mrpo recipe lists them")
    facts = facts_of(Recipe.model_fields[key])
    if as_json:
        print_json(facts)
        return
    print(f"{key}: {facts['meaning']}")
    print(f"default:  {_yaml(facts['default'])}")
    if facts["choices"]:
        print(f"one of:   {', '.join(map(str, facts['choices']))}")
    for name, phrase in phrases_of(Recipe.model_fields[key].annotation).items():
        print(f"          {name}: {phrase}")
    print(f"to set:   mrpo train --set {key}=VALUE, or {key}: VALUE in a recipe")


def recipe_text() -> str:
    """A recipe as YAML: every key with its default and its meaning; unset ones commented out."""
    from mrpo_tools.config import Recipe

    lines = []
    for name, field in Recipe.model_fields.items():
        if name in SECTIONS:
            lines += ["", f"# {SECTIONS[name]}"]
        facts = facts_of(field)
        line = f"{name}: {_yaml(facts['default'])}"
        line = f"# {name}:" if facts["default"] is None else line
        choices = f" ({', '.join(map(str, facts['choices']))})" if facts["choices"] else ""
        lines.append(f"{line:<36} # {facts['meaning']}{choices}")
    return "\n".join(lines[1:]) + "\n"


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


def _yaml(value: object) -> str:
    import yaml

    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
