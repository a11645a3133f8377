"""A user's rule: a function that gives marks to an answer, `MODULE:FUNCTION`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import math
import numbers
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mrpo_tools.cache import ScoreRow, WriterRecord
from mrpo_tools.cache.parts import FAILED
from mrpo_tools.errors import UsageError, did_you_mean, shorten
from mrpo_tools.groups import Group
from mrpo_tools.messages import Message
from mrpo_tools.references.identity import Identity
from mrpo_tools.scoring.protocol import SCORING_VERSION, KindOfScorer, Scoring

SHOWN = 60
"""Characters of a prompt and an answer in an error."""


@dataclass(frozen=True)
class Rule:
    """Marks for answers.

    Attributes:
        name: `MODULE:FUNCTION`.
        function: of a prompt's messages (dicts of role and content) and an answer's text.
        identity: hash of its source file and its name.
        full_marks: the largest marks; None where there are none.
        called: as the cache calls it; empty for a name made of the rule's own.
    """

    name: str
    function: Callable[[list[dict[str, str]], str], float]
    identity: str
    full_marks: float | None = None
    called: str = ""
    kind: ClassVar[KindOfScorer] = "rule"

    @property
    def store_name(self) -> str:
        """`rules.score` of `rules:score`."""
        return self.called or ".".join(self.name.replace(":", ".").split(".")[-2:])

    @property
    def stored_identity(self) -> Identity:
        """Its name and the hash of its source."""
        fields = {"scorer": "rule", "scoring_version": SCORING_VERSION}
        return Identity({**fields, "rule": self.name, "source": self.identity})

    @property
    def words(self) -> Mapping[str, Any]:
        """As a project's `scorers:` has them."""
        return {"rule": self.name, "full_marks": self.full_marks}

    def begin(self, groups: Sequence[Group]) -> Scoring:
        """Give marks to every response; one that gets none is `failed`, with the reason."""
        rows = ([self._row(group, place)] for group in groups for place in _places(group))
        return Scoring(rows, WriterRecord(scorer=self.words, started=time.time()))

    def _row(self, group: Group, place: int) -> ScoreRow:
        key, answer = group.response_ids[place], group.responses[place]
        try:
            marks = self.marks(group.prompt, answer.content)
        except UsageError as error:
            return ScoreRow(key, group.prompt_id, None, FAILED, reason=error.what)
        return ScoreRow(key, group.prompt_id, marks)

    def marks(self, prompt: Sequence[Message], answer: str) -> float:
        """The marks of an answer.

        Raises:
            UsageError: the rule fails, or gives no finite number; names the prompt and the answer.
        """
        where = f"for the answer {shorten(answer, SHOWN)} to {shorten(prompt[-1].content, SHOWN)}"
        try:
            marks = self.function([turn.as_dict() for turn in prompt], answer)
        except Exception as error:
            raise UsageError(f"rule {self.name} fails {where}: {_line(error)}") from None
        if not isinstance(marks, numbers.Real) or not math.isfinite(marks):
            raise UsageError(f"rule {self.name} gives no number but {marks!r:.60} {where}")
        return float(marks)

    def is_full(self, marks: float) -> bool | None:
        """Whether marks are full; None where there are no full marks."""
        return None if self.full_marks is None else marks >= self.full_marks


def load_rule(name: str, full_marks: float | None = None, called: str = "") -> Rule:
    """A rule by its name; its module lies in the working directory or is installed.

    Args:
        name: `MODULE:FUNCTION`.
        full_marks: None takes the function's own attribute `full_marks`, if it has one.
        called: as the cache calls it.

    Raises:
        UsageError: there is no such function, or its module fails as it is imported.
    """
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise UsageError(f"rule {name!r}: MODULE:FUNCTION is needed", "--rule rules:score")
    module = _imported(module_name)
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [word for word, value in vars(module).items() if callable(value)]
        raise UsageError(
            f"rule {name}: {module_name} has no function {function_name}",
            did_you_mean(function_name, functions),
        )
    own = getattr(function, "full_marks", None)
    if own is not None and not isinstance(own, numbers.Real):
        raise UsageError(f"rule {name}: its full_marks are {own!r:.60}, no number")
    most = own if full_marks is None else full_marks
    largest = None if most is None else float(most)
    return Rule(name, function, _identity(_source_file(module), name), largest, called)


def _source_file(module: Any) -> str | None:
    try:
        return inspect.getsourcefile(module)
    except TypeError:
        return None


def _places(group: Group) -> range:
    return range(len(group.responses))


def source_hash(name: str) -> str | None:
    """The identity of a rule as its source is now, without importing its module; None where there
    is no such module."""
    _look_here()
    try:
        spec = importlib.util.find_spec(name.partition(":")[0])
    except (ImportError, ValueError):
        return None
    return None if spec is None else _identity(spec.origin, name)


def _look_here() -> None:
    """Let modules of the working directory be found."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()


def _imported(name: str) -> Any:
    _look_here()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise UsageError(
                f"no module {name} in {Path.cwd()}, and none is installed", "--rule MODULE:FUNCTION"
            ) from None
        raise UsageError(f"the rule's module {name} cannot be imported: {error}") from None
    except Exception as error:
        raise UsageError(f"the rule's module {name} cannot be imported: {_line(error)}") from None


def _identity(file: str | None, name: str) -> str:
    """SHA-256 of the bytes of the module's source, where it has one, and the rule's name."""
    try:
        source = Path(file or "").read_bytes()
    except OSError:
        source = b""
    return hashlib.sha256(name.encode() + b"\0" + source).hexdigest()


def _line(error: BaseException) -> str:
    """An error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
