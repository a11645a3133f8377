"""Checkpoints: sealed when all of their files are written, passed over where a byte has changed.

A seal names the run, the step and the SHA-256 of every file. A kill, a full disk, an editor or a
copy from another step or run leaves a checkpoint that does not agree with its seal, or with the run
it lies in, and nobody trains on from it.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from pydantic import Field

from mrpo_tools.config import read_yaml
from mrpo_tools.errors import UsageError
from mrpo_tools.progress import say_once
from mrpo_tools.runs.record import FIXED, RECIPE, RUN, Record, determining, read_object

SEAL = "seal.json"
PREFIX = "checkpoint-"


class Seal(Record):
    """`checkpoint-N/seal.json`.

    Attributes:
        step: N.
        run: what determined the run: its recipe, and of its record what may not change. Seals of
            an older mrpo do not say.
        files: the SHA-256 of each file's bytes, by its path in the checkpoint.
    """

    step: int
    run: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, str] = Field(min_length=1)


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints in a run's directory, whole or not, the latest step first."""
    folders = [path for path in run.glob(f"{PREFIX}*") if _number(path).isdecimal()]
    return sorted((path for path in folders if path.is_dir()), key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was made, by its name."""
    return int(_number(checkpoint))


def is_sealed(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end, whatever has become of it."""
    return (checkpoint / SEAL).is_file()


def seal(checkpoint: Path) -> None:
    """Seal a checkpoint all of whose files are written."""
    run = _determined(checkpoint.parent)
    sealed = Seal(step=step_of(checkpoint), run=run, files=_digests(checkpoint))
    sealed.write(checkpoint / SEAL)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None where every byte is the one that was saved."""
    if not is_sealed(checkpoint):
        return f"it has no {SEAL}: it was not written to its end, or by an older mrpo"
    try:
        sealed = Seal.read(checkpoint / SEAL)
    except UsageError as error:
        return error.what
    if sealed.step != step_of(checkpoint):
        return f"it is the checkpoint of step {sealed.step}"
    now = _determined(checkpoint.parent)
    others = [key for key in sealed.run if key in now and sealed.run[key] != now[key]]
    if others:
        return f"it is of a run with another {', '.join(others)}"
    try:
        files = _digests(checkpoint)
    except OSError as error:
        return f"it cannot be read: {error}"
    for name in sorted(sealed.files.keys() | files.keys()):
        if name not in files:
            return f"{name} is gone"
        if name not in sealed.files:
            return f"{name} was not saved with it"
        if files[name] != sealed.files[name]:
            return f"{name} is not as {SEAL} has it"
    return None


def last_whole(run: Path) -> Path | None:
    """The latest checkpoint to train on from; those that are damaged are passed over by name."""
    passed_over = False
    for checkpoint in checkpoints(run):
        problem = damage(checkpoint)
        if problem is None:
            if passed_over:
                say_once(f"training goes on from {checkpoint}")
            return checkpoint
        passed_over = True
        say_once(f"warning: {checkpoint} is passed over: {problem}")
    if passed_over:
        say_once("no whole checkpoint is left: training begins anew")
    return None


def keep(run: Path, newest: Path, count: int | None, best: str | None = None) -> None:
    """Remove checkpoints until `count` are left; None keeps all earlier ones.

    Those after `newest`, which has just been sealed, were passed over, and go too. The one named
    `best` stays beside those that are counted.
    """
    others = [path for path in checkpoints(run) if path != newest and path.name != best]
    later = [path for path in others if step_of(path) > step_of(newest)]
    earlier = [path for path in others if path not in later]
    for checkpoint in later + ([] if count is None else earlier[count - 1 :]):
        shutil.rmtree(checkpoint, ignore_errors=True)


def _number(checkpoint: Path) -> str:
    return checkpoint.name.removeprefix(PREFIX)


def _determined(run: Path) -> dict[str, Any]:
    """What determines a run, by key; nothing where none is."""
    if not ((run / RECIPE).is_file() and (run / RUN).is_file()):
        return {}
    record = read_object(run / RUN)
    recipe = determining(read_yaml(run / RECIPE))
    return recipe | {key: record.get(key) for key in FIXED}


def _digests(checkpoint: Path) -> dict[str, str]:
    """What a checkpoint holds beside its seal; hidden files are a file system's own."""
    digests = {}
    for path in sorted(checkpoint.rglob("[!.]*")):
        if path.is_file() and path != checkpoint / SEAL:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests[path.relative_to(checkpoint).as_posix()] = digest
    return digests
