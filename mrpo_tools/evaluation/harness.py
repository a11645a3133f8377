"""Tasks of the language-model evaluation harness (lm-eval) on a model as this package loads it.

The harness's own code asks and marks: how a context and its continuation become tokens, where an
answer stops, what counts. So a number here is the number that `lm_eval --model hf` gives of the
same model, and stands beside published ones. The model is loaded by this package, the adapter as an
adapter, in the arithmetic of its identity, under which the results are kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mrpo_tools.errors import MrpoError, UsageError, did_you_mean
from mrpo_tools.progress import rank_and_count
from mrpo_tools.references.devices import free_memory, memory_errors, pick_device
from mrpo_tools.references.loading import load_tokenizer
from mrpo_tools.references.model_files import first_line
from mrpo_tools.references.resolved import ResolvedReference
from mrpo_tools.runs.record import Part, Setting
from mrpo_tools.scorer.loaded import LoadedReference, load_reference

PRESETS = {"glu": ("gsm8k", "truthfulqa_mc2", "hellaswag", "mmlu", "arc_easy", "winogrande")}
"""Names for several tasks: MRPO's six, Tables 4 and 8."""
SHOTS = {
    "gsm8k": 5, "truthfulqa_mc2": 0, "hellaswag": 10, "mmlu": 5, "arc_easy": 25, "winogrande": 5,
}  # fmt: skip
"""Worked examples before a question, where nobody says otherwise: the Open LLM Leaderboard's, whose
data sets MRPO's tables name (its ARC was the challenge set)."""
SEEDS = {"random_seed": 0, "numpy_seed": 1234, "torch_seed": 1234, "fewshot_seed": 1234}
"""The harness's own; the last one draws the worked examples."""
VERSION = 1
"""Of how tasks are asked here; another one makes results anew."""
CPU_BATCH = 4


@dataclass(frozen=True)
class Wanted:
    """What is asked of the harness.

    Attributes:
        tasks: names of its tasks and groups, or of `PRESETS`.
        folder: of the user's own tasks, YAML files; None for the harness's alone.
        shots: worked examples before a question; None takes `SHOTS`, or what the task says.
        limit: the first so many examples of a task; None for all.
        chat: whether questions are asked in the model's chat template, where it has one.
    """

    tasks: tuple[str, ...]
    folder: Path | None = None
    shots: int | None = None
    limit: int | None = None
    chat: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks, presets taken apart, each once."""
        return tuple(dict.fromkeys(t for word in self.tasks for t in PRESETS.get(word, (word,))))

    def shots_of(self, task: str) -> int | None:
        """How many worked examples a task gets; None leaves it to the task."""
        return SHOTS.get(task) if self.shots is None else self.shots


class Measured(Part):
    """What the harness says of a model's answers to one task.

    Attributes:
        metric: the first that the task names, `acc,none`: a metric and the filter of answers.
        value: of it.
        stderr: the harness's standard error; None where it has none.
        metrics: all of them, standard errors too.
        higher_is_better: by metric.
        versions: of the task and of those that it is made of.
        shots: worked examples of each.
        examples: of each task that it is made of, columns: `doc_id`, `doc_hash` and each metric.
    """

    metric: str
    value: float | None = None
    stderr: float | None = None
    metrics: dict[str, float | None]
    higher_is_better: dict[str, bool | None]
    versions: dict[str, Setting]
    shots: dict[str, int]
    examples: dict[str, dict[str, list[Any]]]


class Harness:
    """The harness with the user's tasks.

    Args:
        wanted: tasks and settings.

    Raises:
        UsageError: it is not installed, or several processes would each ask.
    """

    def __init__(self, wanted: Wanted) -> None:
        if importlib.util.find_spec("lm_eval") is None:
            raise UsageError("benchmarks need the extra `eval`", "pip install 'mrpo-tools[eval]'")
        if rank_and_count() != (0, 1):
            raise UsageError("benchmarks run in one process", "start mrpo without a launcher")
        if wanted.folder is not None and not wanted.folder.is_dir():
            raise UsageError(f"no directory {wanted.folder} with tasks", "--harness-tasks DIR")
        self.wanted = wanted

    @cached_property
    def _manager(self) -> Any:
        """The tasks; the harness's own, which are thousands of files, where the folder lacks one.

        Raises:
            UsageError: a task that nobody has.
        """
        from lm_eval.tasks import TaskManager

        folder = self.wanted.folder and str(self.wanted.folder)
        for defaults in (False, True) if folder else (True,):
            with _quiet(), _failures("its tasks"):
                manager = TaskManager(include_path=folder, include_defaults=defaults)
            known = {*manager.all_subtasks, *manager.all_groups}
            unknown = [name for name in self.wanted.names if name not in known]
            if not unknown:
                return manager
        raise UsageError(f"the harness has no task {unknown[0]!r}", did_you_mean(unknown[0], known))

    @cached_property
    def origin(self) -> dict[str, Setting]:
        """Which harness it is: its version, its commit where it was installed from one, and a hash
        of the user's tasks with their data."""
        installed = importlib.metadata.distribution("lm_eval")
        source = json.loads(installed.read_text("direct_url.json") or "{}")
        folder = self.wanted.folder
        return {
            "harness": installed.version,
            "harness_commit": source.get("vcs_info", {}).get("commit_id"),
            "tasks_hash": None if folder is None else hash_folder(folder),
        }

    def about(self, task: str, resolved: ResolvedReference) -> dict[str, Setting]:
        """Everything that determines a model's results on a task."""
        template = resolved.identity.fields["chat_template"]
        return {
            "version": VERSION,
            "policy": resolved.identity.hash,
            "task": task,
            "shots": self.wanted.shots_of(task),
            "limit": self.wanted.limit,
            "chat_template": self.wanted.chat and bool(template),
            **self.origin,
            **SEEDS,
        }

    def measure(self, task: str, subject: Subject) -> Measured:
        """Ask a model everything of one task.

        Raises:
            MrpoError: the harness fails: its data cannot be had, a task's code fails.
            ResourceError: out of memory.
            UsageError: some task that is wanted is unknown.
        """
        import lm_eval

        manager = self._manager
        chat = self.wanted.chat and subject.has_template
        _seed()
        with (
            _quiet(),
            _failures(f"task {task}"),
            memory_errors(f"asking the task {task}", "use a smaller model"),
            subject.arithmetic(),
        ):
            loaded = manager.load([task])
            for each in loaded["tasks"].values():
                self._set_shots(each, self.wanted.shots_of(task))
            results = lm_eval.evaluate(
                lm=subject.lm,
                task_dict=loaded,
                limit=self.wanted.limit,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
            )
        return measured_of(task, results)

    @staticmethod
    def _set_shots(task: Any, shots: int | None) -> None:
        """As the harness's command does: a task that says 0 keeps it."""
        own = task.get_config("num_fewshot")
        if own is None or (own and shots is not None):
            task.set_config(key="num_fewshot", value=shots or 0)
        task.set_fewshot_seed(seed=SEEDS["fewshot_seed"])


class Subject:
    """A model as the harness asks it; loaded when first asked.

    Args:
        resolved: the model.
    """

    def __init__(self, resolved: ResolvedReference) -> None:
        self.resolved = resolved

    @property
    def has_template(self) -> bool:
        """Whether it has a chat template."""
        return bool(self.resolved.identity.fields["chat_template"])

    @cached_property
    def _loaded(self) -> LoadedReference:
        with memory_errors(f"loading {self.resolved.reference.model}", "use a smaller model"):
            return load_reference(self.resolved, self.resolved.products, pick_device())

    @cached_property
    def lm(self) -> Any:
        """The harness's own class around the loaded model and its tokenizer."""
        from lm_eval.models.huggingface import HFLM

        tokenizer = load_tokenizer(self.resolved.files, self.resolved.reference)
        fields = self.resolved.identity.fields
        tokenizer.chat_template = fields["chat_template"]
        day = fields.get("pinned_date")
        today = None if day is None else date.fromisoformat(day)
        loaded = self._loaded
        with _quiet():
            return HFLM(
                pretrained=loaded.scorer.causal_lm,
                tokenizer=tokenizer,
                batch_size=CPU_BATCH if loaded.device.type == "cpu" else "auto",
                chat_template_args=None if today is None else
                {"strftime_now": today.strftime, "date_string": today.strftime("%d %b %Y")},
            )  # fmt: skip

    def arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of products."""
        return self._loaded.scorer.arithmetic()

    def release(self) -> None:
        """Give the model's memory back."""
        self.__dict__.pop("lm", None)
        if self.__dict__.pop("_loaded", None) is not None:
            free_memory()


def _seed() -> None:
    """As the harness's command does, for tasks that draw."""
    random.seed(SEEDS["random_seed"])
    np.random.seed(SEEDS["numpy_seed"])
    torch.manual_seed(SEEDS["torch_seed"])


def measured_of(task: str, results: dict[str, Any]) -> Measured:
    """The part of the harness's answer that is kept.

    Raises:
        MrpoError: the task says no number.
    """
    said = {**results["results"].get(task, {}), **results.get("groups", {}).get(task, {})}
    metrics = {
        key: float(value) if isinstance(value, int | float) else None
        for key, value in said.items()
        if "," in key
    }
    names = [key for key in metrics if "_stderr," not in key]
    if not names:
        raise MrpoError(f"the harness gives no number for task {task}", "name its tasks apart")
    metric, _, kind = names[0].partition(",")
    better = results["higher_is_better"]
    return Measured(
        metric=names[0],
        value=metrics[names[0]],
        stderr=metrics.get(f"{metric}_stderr,{kind}"),
        metrics=metrics,
        higher_is_better=better.get(task, {}),
        versions=results["versions"],
        shots=results["n-shot"],
        examples={leaf: _columns(rows) for leaf, rows in results["samples"].items()},
    )


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The examples of a task as columns, with every number that was said of them."""
    by_id: dict[int, dict[str, Any]] = {}
    for row in rows:
        own = by_id.setdefault(
            row["doc_id"], {"doc_id": row["doc_id"], "doc_hash": row["doc_hash"]}
        )
        for metric in row["metrics"]:
            if isinstance(row[metric], bool | int | float) or hasattr(row[metric], "item"):
                own[f"{metric},{row['filter']}"] = float(row[metric])
    ordered = [by_id[key] for key in sorted(by_id)]
    names = dict.fromkeys(name for row in ordered for name in row)
    return {name: [row.get(name) for row in ordered] for name in names}


def hash_folder(folder: Path) -> str:
    """SHA-256 of the names and bytes of a directory's files; caches of Python do not count."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            name, content = str(file.relative_to(folder)).encode(), file.read_bytes()
            digest.update(b"%d:%s%d:" % (len(name), name, len(content)) + content)
    return digest.hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What a library prints goes to stderr: stdout is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def _failures(doing: str) -> Iterator[None]:
    """A failure of the harness as a user's error.

    Raises:
        MrpoError: in place of what it raises; that stands behind it.
    """
    try:
        yield
    except MrpoError:
        raise
    except Exception as error:
        raise MrpoError(
            f"the harness failed at {doing}: {type(error).__name__}: {first_line(error)}",
            "see that its data can be downloaded, and that its task runs with lm_eval",
        ) from error
