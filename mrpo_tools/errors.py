"""Every error a user can meet, and the exit code each one ends with.

    MrpoError                    1   anything else that went wrong
    ├── UsageError               2   an option, a recipe or a project file that cannot be meant
    │   └── DataError            2   rows of a data set that cannot be read, all of them together
    ├── CacheError               3   a cache that cannot answer
    │   ├── CacheMissing         3   log-probs that nobody has computed yet
    │   ├── CacheStale           3   log-probs of another model, tokenizer or format
    │   └── CacheDamaged         3   bytes that are not the bytes that were written
    ├── ResourceError            4   no disk or memory left
    ├── NonFiniteError           5   training reached NaN or infinity
    ├── ServerError              1   a server that does not answer, or not as it was asked
    └── Preempted               75   stopped by a signal; `--resume` goes on

An error says what happened, why, and the next command. Ctrl-C ends with 130.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Sequence

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""How a file system says that it is full."""


class MrpoError(Exception):
    """Something the user can act on.

    Args:
        what: one sentence, without a full stop at the end, naming the thing that failed.
        hint: the next command or action, as the user would type it.
    """

    exit_code = 1

    def __init__(self, what: str, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


class UsageError(MrpoError):
    """The request itself cannot be meant."""

    exit_code = 2


class DataError(UsageError):
    """Rows that cannot be read: every problem of the source, reported together."""

    SHOWN = 20

    def __init__(self, what: str, problems: Sequence[object] = (), hint: str | None = None) -> None:
        super().__init__(what, hint)
        self.problems = list(problems)

    def __str__(self) -> str:
        lines = [self.what, *(f"  {problem}" for problem in self.problems[: self.SHOWN])]
        hidden = len(self.problems) - self.SHOWN
        if hidden > 0:
            lines.append(f"  … and {hidden:,} more")
        return "\n".join(lines)


class CacheError(MrpoError):
    """The cache cannot answer."""

    exit_code = 3


class CacheMissing(CacheError):
    """Log-probs that nobody has computed yet."""


class CacheStale(CacheError):
    """Log-probs of another model, tokenizer, setting or file format."""


class CacheDamaged(CacheError):
    """Bytes that are not the bytes that were written."""


class ResourceError(MrpoError):
    """No disk or memory left."""

    exit_code = 4


def disk_error(path: object, error: OSError) -> ResourceError:
    """What the file system refused at a path, as a user's error."""
    reason = error.strerror or str(error)
    if error.errno in NO_SPACE:
        return ResourceError(f"no space left while writing to {path}: {reason}", "free some space")
    return ResourceError(f"cannot write to {path}: {reason}", "check the path and its permissions")


class NonFiniteError(MrpoError):
    """Training reached NaN or infinity."""

    exit_code = 5


class ServerError(MrpoError):
    """A server does not answer, or not as it was asked."""


class Preempted(MrpoError):
    """Stopped by a signal after saving; `--resume` goes on."""

    exit_code = 75


def shorten(text: str, width: int = 24) -> str:
    """A user's text for a message: in quotes, on one line, cut to `width` characters."""
    return ascii(text) if len(text) <= width else ascii(text[: width - 1])[:-1] + "…'"


SYNONYMS = {
    "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "steps": "max_steps",
    "lora_rank": "lora_r",
    "rank": "lora_r",
    "warmup": "warmup_ratio",
    "grad_accum": "gradient_accumulation_steps",
    "scheduler": "lr_scheduler_type",
    "eps": "epsilon_max",
    "epsilon": "epsilon_max",
    "lambda": "sft_weight",
    "target_modules": "lora_target_modules",
    "model": "policy",
    "data": "dataset",
}
"""What people write for some of our words."""
LISTED = 12
"""So many known words are listed where none is near."""


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """A hint naming the nearest known words, or all of them when none is near and they are few."""
    names = sorted(known)
    meant = SYNONYMS.get(word)
    near = [meant] if meant in names else difflib.get_close_matches(word, names, n=3)
    if near:
        return f"did you mean {', '.join(near)}?"
    return f"known: {', '.join(names)}" if 0 < len(names) <= LISTED else None
