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

from mrpo_tools.demo.results import RULES, Row, rows_of
from mrpo_tools.errors import MrpoError, UsageError
from mrpo_tools.files import shipped
from mrpo_tools.progress import bar_to
from mrpo_tools.runs.run import is_finished

Execute = Callable[[list[str]], int]

REFERENCES = ("llama", "mistral", "qwen")
PLACEBOS = {"placebo_a": "mistral", "placebo_b": "qwen"}
"""Noise that stands in for a model: its own numbers, dealt out to responses at random."""
RADIUS = ("--set", "epsilon_max=4")  # so wide that a part of the numbers is not clipped
RUNS = {
    "dpo": ["--loss", "dpo", "--refs", "llama"],
    "dpo-mistral": ["--loss", "dpo", "--refs", "mistral", "--set", "policy=llama"],
    "dpo-qwen": ["--loss", "dpo", "--refs", "qwen", "--set", "policy=llama"],
    "mrpo": ["--loss", "mrpo", "--refs", "llama,mistral,qwen", *RADIUS],
    "mrpo-placebo": ["--loss", "mrpo", "--refs", "llama,placebo_a,placebo_b", *RADIUS],
    "mpo": ["--loss", "mpo", "--refs", "llama,mistral,qwen", *RADIUS, "--set", "chosen=top1"],
}
"""The options of `mrpo train` by the name of the run. Of a group's four answers two are right and
one of these is in the form asked for; MPO's own partition would call both chosen."""
MAX_NEW_TOKENS = 32
QUERY = (
    "SELECT reference, count(*) AS responses, sum(num_tokens) AS tokens, "
    "round(avg(logp), 2) AS mean_logp FROM logps GROUP BY reference ORDER BY reference"
)
PLACEBO_QUERY = """\
WITH own AS (SELECT response_id, logp, num_tokens FROM logps WHERE reference = '{model}'),
  places AS (SELECT response_id, row_number() OVER (ORDER BY response_id) AS place FROM own),
  dealt AS (
    SELECT logp, num_tokens, row_number() OVER (ORDER BY md5(response_id)) AS place FROM own)
SELECT response_id, logp, num_tokens FROM places JOIN dealt USING (place) ORDER BY place"""
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
beta: 4                  # for every method: at so large a value the references' numbers matter
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
class Demo:
    """What the demo found; `results.json` in its directory holds the same."""

    rows: list[Row]
    seconds: float


def demo(
    directory: Path,
    execute: Execute,
    show: Callable[[str], None] = print,
    *,
    recipe: str = RECIPE,
    model_steps: int | None = None,
    rounds: int = 0,
) -> Demo:
    """Run the demo in a directory.

    Args:
        directory: new, empty, or that of an earlier demo.
        execute: runs one command line in this process and returns its exit code.
        show: prints a line.
        recipe: the text of the training's YAML recipe.
        model_steps: to train each tiny model for; None for as many as it needs.
        rounds: of sampling and training, after all the rest.

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
        for name, model in PLACEBOS.items():
            _import_placebo(execute, show, name, model)
        for name, options in RUNS.items():
            _train(execute, show, Path("runs", name), options)
        runs = [str(Path("runs", name)) for name in RUNS]
        rules = [word for rule in RULES for word in ("--rule", rule)]
        _type(execute, show, ["evaluate", *runs, *rules, "--max-new-tokens", str(MAX_NEW_TOKENS)])
        _type(execute, show, ["report", "runs"])
        result = Demo(rows_of(map(Path, runs)), time.monotonic() - started)
        Path("results.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
        if rounds:
            _make_rounds(execute, show, rounds)
    return result


def _make_rounds(execute: Execute, show: Callable[[str], None], count: int) -> None:
    from mrpo_tools.demo.rounds import prepare_rounds, run_rounds

    show("\nMaking a tiny reward model, which rewards the answers of each round …")
    prepare_rounds()
    run_rounds(lambda arguments: _type(execute, show, arguments), count)


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


def _import_placebo(execute: Execute, show: Callable[[str], None], name: str, model: str) -> None:
    file = f"{name}.jsonl"
    _type(execute, show, ["sql", PLACEBO_QUERY.format(model=model), "-o", file])
    _type(execute, show, ["cache", "import", file, "--ref", name, "--origin",
                          f"the numbers of {model}, dealt out at random"])  # fmt: skip


def _train(
    execute: Execute, show: Callable[[str], None], output: Path, options: Sequence[str]
) -> None:
    if is_finished(output):
        show(f"\n({output} is finished already)")
        return
    arguments = ["train", "--config", "recipe.yaml", *options, "--output", str(output)]
    _type(execute, show, [*arguments, "--resume"] if output.exists() else arguments)
