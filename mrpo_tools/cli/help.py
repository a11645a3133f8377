"""Help in sections: options and commands under headings, and a phrase for every choice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from mrpo_tools import words
from mrpo_tools.errors import SYNONYMS


class Names(click.Choice[str]):
    """One of the names of a choice in `words`; the help has a line for each."""

    def __init__(self, of: Any) -> None:
        super().__init__(words.choices(of))
        self.phrases = words.phrases(of)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """What stands for a value where only the usage is shown."""
        return "NAME" if isinstance(param, click.Option) else super().get_metavar(param, ctx)


class Command(click.Command):
    """A command whose help has sections, and whose unknown options are answered with near ones.

    Args:
        sections: heading: the names of its parameters; all others stand under "Options".
    """

    def __init__(
        self, *arguments: Any, sections: Mapping[str, Sequence[str]] | None = None, **words: Any
    ) -> None:
        super().__init__(*arguments, **words)
        self.sections = sections or {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options of each section, and below one with choices a line for each."""
        listed = {name for names in self.sections.values() for name in names}
        options = {param.name: param for param in self.get_params(ctx)
                   if isinstance(param, click.Option)}  # fmt: skip
        rest = [name for name in options if name not in listed]
        for heading, names in {**self.sections, "Options": rest}.items():
            rows = [row for name in names for row in _rows(options[name], ctx)]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, but `--lr` is told what people mean by it."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            meant = _meant(error.option_name, self.get_params(ctx))
            if meant is None:
                raise
            raise click.UsageError(f"{error.message} Did you mean {meant}?", ctx) from None


def _rows(option: click.Option, ctx: click.Context) -> Iterator[tuple[str, str]]:
    """An option and its help, then each of its choices and what it means."""
    record = option.get_help_record(ctx)
    if record is None:
        return
    yield record
    if isinstance(option.type, Names):
        for name, phrase in option.type.phrases.items():
            yield f"  {name}", phrase


def _meant(word: str, params: Sequence[click.Parameter]) -> str | None:
    """The option that people mean by another word for it; None where there is none."""
    meant = SYNONYMS.get(word.lstrip("-").replace("-", "_"))
    names = {param.name: param.opts[0] for param in params if isinstance(param, click.Option)}
    if meant in names:
        return names[meant]
    return f"--set {meant}=VALUE" if meant and "settings" in names else None


class Group(click.Group):
    """A group whose commands stand under headings, each with its whole first sentence."""

    command_class = Command
    sections: Mapping[str, Sequence[str]] = {}
    """Heading: names of commands; all others stand under "Commands"."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands of each section."""
        listed = {name for names in self.sections.values() for name in names}
        rest = [name for name in self.list_commands(ctx) if name not in listed]
        for heading, names in {**self.sections, "Commands": rest}.items():
            if names:
                with formatter.section(heading):
                    formatter.write_dl([(name, self._about(ctx, name)) for name in names])

    def _about(self, ctx: click.Context, name: str) -> str:
        command = self.get_command(ctx, name)
        return command.get_short_help_str(limit=200) if command else ""
