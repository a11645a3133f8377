"""`mrpo recipe`: every key of a recipe, with what it means."""

from __future__ import annotations

import click

from mrpo_tools.cli.completion import recipe_keys
from mrpo_tools.cli.help import Command
from mrpo_tools.cli.options import json_option, print_json
from mrpo_tools.cli.recipe_facts import facts_of, phrases_of

SECTIONS = {
    "loss": "What is optimised",
    "beta": "The objective's own hyper-parameters: `mrpo losses NAME` has their defaults",
    "finetuning": "How the policy is trained",
    "eval_steps": "What is measured while it trains",
    "trainer": "What the engine takes beside all that",
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


def _yaml(value: object) -> str:
    import yaml

    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
