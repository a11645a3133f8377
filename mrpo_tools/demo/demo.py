"""`mrpo demo`: the whole project on tiny models, by the commands a user would type.

Makes three tiny models of three families and a project around the shipped data, then runs each
command in this process and prints one table. Every number in it is measured in the run. What is
there already is not done again, so an interrupted demo goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mrpo_tools.config import Reference, load_project
from mrpo_tools.demo.tasks import is_right
from mrpo_tools.errors import MrpoError, UsageError
from mrpo_tools.files import shipped
from mrpo_tools.groups import Group, in_split
from mrpo_tools.progress import bar_to
from mrpo_tools.runs.read import evaluation_file
from mrpo_tools.runs.record import EvaluationRecord, Metrics
from mrpo_tools.runs.run import METRICS, is_finished, load_run
from mrpo_tools.sampling import generate
from mrpo_tools.sources import load_groups

Execute = Callable[[list[str]], int]

REFERENCES = ("llama", "mistral", "qwen")
METHODS = {"dpo": "llama", "mrpo": "llama,mistral,qwen", "mpo": "llama,mistral,qwen"}
MAX_NEW_TOKENS = 32
LONGER = "always the longer (a tie counts 0)"
QUERY = (
    "SELECT reference, count(*) AS responses, sum(num_tokens) AS tokens, "
    "round(avg(logp), 2) AS mean_logp FROM logps GROUP BY reference ORDER BY reference"
)
PROJECT = """\
# Written by `mrpo demo`.
dataset: demo.jsonl
cache: cache
references:
  llama: {model: models/llama, dtype: float32}
  mistral: {model: models/mistral, dtype: float32}
  qwen: {model: models/qwen, dtype: float32}
"""
RECIPE = """\
# The demo's training: LoRA on every linear layer, two passes over 600 groups.
beta: 0.1                # for every method, also where its own default is another
finetuning: lora
lora_r: 8
lora_alpha: 16
learning_rate: 1e-3
per_device_train_batch_size: 8
gradient_accumulation_steps: 2
num_train_epochs: 2
logging_steps: 15
eval_steps: 19           # the test split is measured every half pass, for the report's curves
"""


@dataclass(frozen=True)
class Row:
    """One method's line of the demo's table."""

    method: str
    references: str
    accuracies: float | None
    accuracies_step0: float | None
    accuracies_reference_1: float | None
    accuracies_logp: float | None
    right_before: float
    right_after: float
    margin: float | None
    train_seconds: float
    peak_memory_mb: float


@dataclass(frozen=True)
class Demo:
    """What the demo found; `results.json` in its directory holds the same."""

    rows: list[Row]
    baselines: dict[str, float | None]
    seconds: float


def demo(
    directory: Path,
    execute: Execute,
    show: Callable[[str], None] = print,
    *,
    recipe: str = RECIPE,
    model_steps: int | None = None,
) -> Demo:
    """Run the demo in a directory.

    Args:
        directory: new, empty, or that of an earlier demo.
        execute: runs one command line in this process and returns its exit code.
        show: prints a line.
        recipe: the text of the training's YAML recipe.
        model_steps: to train each tiny model for; None for as many as it needs.

    Raises:
        UsageError: the directory holds something else.
        MrpoError: a command failed; it has printed why.
    """
    started = time.monotonic()
    _prepare(directory, recipe)
    with contextlib.chdir(directory):
        _make_models(show, model_steps)
        _type(execute, show, ["precompute", "--ref", ",".join(REFERENCES)])
        _type(execute, show, ["sql", QUERY])
        _type(execute, show, ["rank"])
        for method, references in METHODS.items():
            _train(execute, show, method, references)
        for method in METHODS:
            _type(execute, show, ["evaluate", f"runs/{method}"])
        _type(execute, show, ["report", "runs"])
        rows, baselines = _results(show)
        result = Demo(rows, baselines, time.monotonic() - started)
        Path("results.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    return result


def _prepare(directory: Path, recipe: str) -> None:
    if directory.is_file():
        raise UsageError(f"{directory} is a file; the demo needs a directory")
    ours = (directory / "mrpo.yaml").exists() and (directory / "demo.jsonl").exists()
    if directory.is_dir() and any(directory.iterdir()) and not ours:
        raise UsageError(f"{directory} is not empty", "mrpo demo NEW_DIRECTORY")
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(shipped("data") / "demo.jsonl", directory / "demo.jsonl")
    (directory / "mrpo.yaml").write_text(PROJECT, encoding="utf-8")
    (directory / "recipe.yaml").write_text(recipe, encoding="utf-8")


def _make_models(show: Callable[[str], None], steps: int | None) -> None:
    """Three tiny models of three families; made once."""
    if all(Path("models", name, "model.safetensors").exists() for name in REFERENCES):
        return
    from mrpo_tools.demo.tiny_models import STEPS, make_models
    from mrpo_tools.references.loading import quiet_libraries

    quiet_libraries()

    show("Making three tiny models (Llama, Mistral, Qwen2), each better at other tasks …")
    with bar_to("training the models", "steps") as report:
        make_models(
            "models",
            steps=steps or STEPS,
            on_progress=lambda name, step, steps: report(
                REFERENCES.index(name) * steps + step, len(REFERENCES) * steps
            ),
        )


def _type(execute: Execute, show: Callable[[str], None], arguments: Sequence[str]) -> None:
    show(f"\n$ mrpo {shlex.join(arguments)}")
    code = execute(list(arguments))
    if code:
        error = MrpoError(f"the demo stopped: mrpo {arguments[0]} ended with {code}")
        error.exit_code = code
        raise error


def _train(execute: Execute, show: Callable[[str], None], method: str, references: str) -> None:
    output = Path("runs", method)
    if is_finished(output):
        show(f"\n(runs/{method} is finished already)")
        return
    arguments = ["train", "--config", "recipe.yaml", "--loss", method, "--refs", references,
                 "--output", str(output)]  # fmt: skip
    _type(execute, show, [*arguments, "--resume"] if output.exists() else arguments)


def _results(show: Callable[[str], None]) -> tuple[list[Row], dict[str, float | None]]:
    """Greedy answers before and after, beside what `evaluate` measured."""
    project = load_project()
    test = in_split(load_groups("demo.jsonl").groups, "test")
    show("\nAnswering the test prompts greedily, before and after training …")
    before = right_share(_answers(project.references["llama"], test), test)
    rows = []
    for method, references in METHODS.items():
        run = load_run(Path("runs", method))
        metrics = Metrics.read(run.path / METRICS)
        evaluation = EvaluationRecord.read(evaluation_file(run.path, "test"))
        rows.append(
            Row(
                method=method,
                references=references,
                accuracies=evaluation.accuracies,
                accuracies_step0=(
                    None if evaluation.untrained_is_tied else evaluation.accuracies_step0
                ),
                accuracies_reference_1=evaluation.accuracies_reference_1,
                accuracies_logp=evaluation.accuracies_logp,
                right_before=before,
                right_after=right_share(_answers(run.trained_policy, test), test),
                margin=evaluation.margins,
                train_seconds=metrics.train_seconds or 0.0,
                peak_memory_mb=(metrics.peak_memory_bytes or 0) / 1e6,
            )
        )
    alone = evaluation.references_alone()
    baselines = {f"{name.partition('@')[0]} alone": accuracy.value for name, accuracy in alone}
    return rows, {**baselines, LONGER: evaluation.accuracies_longer}


def _answers(reference: Reference, groups: Sequence[Group]) -> list[str]:
    return generate(reference, [group.prompt for group in groups], MAX_NEW_TOKENS)


def right_share(answers: Sequence[str], groups: Sequence[Group]) -> float:
    """Share of answers that the tasks' rule calls right."""
    hits = [
        is_right([turn.as_dict() for turn in group.prompt], answer)
        for group, answer in zip(groups, answers, strict=True)
    ]
    return sum(hits) / len(hits)
