"""The command line: each command parses, calls one function and prints.

Results go to stdout, progress and warnings to stderr. Heavy imports stay inside the commands, so
`mrpo --help` is quick and `mrpo sql` and `mrpo cache` work without torch.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import click

from mrpo_tools.cli.help import Group
from mrpo_tools.cli.srun import torchrun_variables
from mrpo_tools.errors import NO_SPACE, MrpoError, Preempted, ResourceError, did_you_mean
from mrpo_tools.progress import is_first_process, say_once

COMMANDS = {
    "init": "mrpo_tools.cli.project",
    "demo": "mrpo_tools.cli.demo",
    "doctor": "mrpo_tools.cli.project",
    "losses": "mrpo_tools.cli.losses",
    "recipe": "mrpo_tools.cli.recipe",
    "data": "mrpo_tools.cli.data",
    "precompute": "mrpo_tools.cli.precompute",
    "score": "mrpo_tools.cli.score",
    "train": "mrpo_tools.cli.train",
    "round": "mrpo_tools.cli.round",
    "rank": "mrpo_tools.cli.rank",
    "evaluate": "mrpo_tools.cli.evaluate",
    "judge": "mrpo_tools.cli.judge",
    "sweep": "mrpo_tools.cli.sweep",
    "compare": "mrpo_tools.cli.compare",
    "report": "mrpo_tools.cli.report",
    "generate": "mrpo_tools.cli.generate",
    "merge": "mrpo_tools.cli.merge",
    "sql": "mrpo_tools.cli.sql",
    "cache": "mrpo_tools.cli.cache",
}
"""Command: the module that holds it under its own name."""
SECTIONS = {
    "Begin": ("demo", "init", "doctor"),
    "Data and their scores": ("data", "score"),
    "Phase 1: numbers of the references": ("precompute", "cache", "sql", "rank"),
    "Phase 2: a policy": ("train", "round", "sweep", "evaluate", "generate", "merge"),
    "Results": ("compare", "judge", "report"),
    "What there is to choose": ("losses", "recipe"),
}
"""Of the help: commands by heading, in the order of their use."""


class LazyGroup(Group):
    """A group that imports a command's module when it is asked for."""

    sections = SECTIONS

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """The names, in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        """The command of a name, imported now."""
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(COMMANDS[name]), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but an unknown name is answered with near ones."""
        if args and args[0] not in COMMANDS:
            hint = did_you_mean(args[0], COMMANDS)
            raise click.UsageError(f"no command is named {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mrpo-tools", prog_name="mrpo")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def cli(ctx: click.Context, *, debug: bool) -> None:
    """Preference optimisation with several reference models.

    Phase 1, `mrpo precompute`, streams each reference over preference data and caches its
    log-probs. Phase 2, `mrpo train`, trains a policy against the cached numbers.

    Each command says what to run next. `mrpo COMMAND --help` has its options and an example.

    \b
    Example:
        mrpo demo                 # everything, on tiny models, in minutes
        mrpo init --dataset pairs.jsonl --ref llama=./models/llama --ref qwen=Qwen/Qwen2.5-7B
        mrpo precompute
        mrpo train --loss mrpo --output runs/mrpo
    """
    ctx.obj = {"debug": debug}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the code that `errors` promises."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    told = torchrun_variables(os.environ)
    os.environ.update(told)
    if told:
        say_once(f"process 1 of the {told['WORLD_SIZE']} that srun started")
    code = run(arguments)
    if "torch" not in sys.modules:  # a library's thread that is starting can abort a normal exit
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str], command: click.Command = cli) -> int:
    """Run one command line; returns the exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        code = command.main(arguments, prog_name="mrpo", standalone_mode=False)
        _flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("interrupted; what was written so far is kept", file=sys.stderr)
        return 130
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        return explain(error)


def _flush() -> None:
    """Write what is left, so that a full disk is told; a reader that has gone is no error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def explain(error: Exception) -> int:
    """Print an error as what, why and the next command; returns its exit code."""
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        error = ResourceError(f"no space left: {error}", "free some space")
    if isinstance(error, Preempted) and not is_first_process():
        return error.exit_code  # every process was told; one says so
    if isinstance(error, MrpoError):
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"next:  {error.hint}", file=sys.stderr)
        return error.exit_code
    print(f"error: unexpected {type(error).__name__}: {error}", file=sys.stderr)
    print("next:  run it again with `mrpo --debug …` and report the traceback", file=sys.stderr)
    return 1
