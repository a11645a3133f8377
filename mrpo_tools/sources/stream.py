"""The groups of a source, one after the other: read, adapt, check, split, count."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mrpo_tools.config import Dataset
from mrpo_tools.errors import DataError, UsageError, did_you_mean, shorten
from mrpo_tools.groups import Group, Response
from mrpo_tools.sources.adapters.adapter import Adapter
from mrpo_tools.sources.adapters.conversation import with_system
from mrpo_tools.sources.adapters.detect import SAMPLE_ROWS, choose
from mrpo_tools.sources.adapters.fields import Field, says
from mrpo_tools.sources.adapters.pairs import has_one_sided_score
from mrpo_tools.sources.checks import (
    COUNTS,
    ENOUGH_VERDICTS,
    FEW_VERDICTS,
    Noticing,
    checked_responses,
    is_sampled,
    preferred_side,
)
from mrpo_tools.sources.columns import Columns
from mrpo_tools.sources.locate import locate, split_name
from mrpo_tools.sources.readers.rows import Problem, Reading, Row, ignore_progress
from mrpo_tools.sources.splits import Draw, Room
from mrpo_tools.words import KeptStatus

MAX_PROBLEMS = 100_000


@dataclass(frozen=True)
class Options:
    """How to read a source; `load_groups` describes each."""

    adapter: str | None = None
    mapping: Mapping[str, str] = field(default_factory=dict)
    split: str | None = None
    limit: int | None = None
    test_size: float | None = None
    validation_size: float = 0.0
    seed: int = 0
    score: str | None = None
    skip_bad: bool = False
    keep_status: Collection[KeptStatus] = ()
    on_progress: Callable[[int, int], None] = ignore_progress

    @classmethod
    def of(cls, dataset: Dataset, **more: Any) -> Options:
        """A data set's own words, and what else is wished."""
        return cls(
            adapter=dataset.adapter,
            mapping=dataset.map or {},
            limit=dataset.limit,
            test_size=dataset.test_size,
            validation_size=dataset.validation_size,
            seed=dataset.split_seed,
            score=dataset.score,
            skip_bad=dataset.skip_bad,
            keep_status=dataset.keep_status,
            **more,
        )

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit {self.limit}: expected 1 or more")
        if self.test_size is not None and not 0 <= self.test_size <= 1:
            raise UsageError(f"--test-size {self.test_size}: expected a share from 0 to 1")
        if not 0 <= self.validation_size <= 1:
            raise UsageError(f"--validation-size {self.validation_size}: expected a share, 0 to 1")


class GroupStream:
    """The groups of a source, for data larger than memory.

    The adapter is chosen at once. Rows are read and checked while iterating, which is possible
    once; `counts` and `problems` fill meanwhile, and only the end of the iteration raises the
    DataError. So whoever writes what this yields writes to a temporary name.

    Attributes:
        name: short and file-system-safe: `demo` of data/demo.jsonl.
        adapter: what understands the rows.
        reason: why it was chosen, for people.
        revision: the commit of a hub data set, else None.
        counts: by the names in `COUNTS`.
        problems: of all rows so far.
        unused: rows that hold anything in a column that is not read, and messages with a key that
            is not; by the column's name or the key's path.
        drawn: groups whose split was drawn so far: the data names none for them.
    """

    def __init__(self, source: str | Path, options: Options | None = None) -> None:
        self.source = str(source)
        self.options = options or Options()
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
        self.problems: list[Problem] = []
        self.unused: Counter[str] = Counter()
        self.drawn = 0
        self._splits: Counter[str | None] = Counter()
        located = locate(source)
        self.name = located.name
        self._draw = Draw.of(
            located, self.options.test_size, self.options.seed, self.options.validation_size
        )
        reading = Reading(self.counts, self.options.on_progress)
        rows = located.rows(reading)
        head = list(itertools.islice(rows, SAMPLE_ROWS))
        self.revision = reading.revision
        self._rows = itertools.chain(head, rows)
        self._keys: Counter[str] = Counter()
        self._columns = Columns(self.options.mapping, head)
        objects = self._columns.objects(head)
        named = any("split" in row for row in objects)
        self._names_splits = named or any(item.split for item in head if isinstance(item, Row))
        self.adapter, self.reason = choose(self.source, objects, self.options.adapter)
        self._score = _kind_of_score(self.adapter, self.options.score)

    def __iter__(self) -> Iterator[Group]:
        groups = self._read()
        if self.adapter.one_response_a_row:
            groups = self._gathered(groups)
        yield from self._settled(groups)
        self._doubt_verdicts()
        fatal = any(problem.fatal for problem in self.problems)
        if self.options.skip_bad and self.counts["groups"] and not fatal:
            self.counts["skipped_rows"] = len({problem.where for problem in self.problems})
        elif self.problems:
            raise self._error()
        elif not self.counts["groups"]:
            raise self._nothing_left()

    def _read(self) -> Iterator[Group]:
        """The group of every good row; problems are noted."""
        for item in self._rows:
            if isinstance(item, Problem):
                self.problems.append(item)
            else:
                self.counts["rows"] += 1
                yield from self._groups(item)
            if len(self.problems) >= MAX_PROBLEMS:
                stop = f"stopped after {MAX_PROBLEMS:,} problems"
                self.problems.append(Problem(self.source, "rows", stop, fatal=True))
                return

    def _groups(self, row: Row) -> list[Group]:
        problems: list[Problem] = []
        value = self._columns.renamed(row.value)
        root = Field(value, "", row.where, problems, self._keys, set())
        groups: list[Group] = []
        if isinstance(value, Mapping):
            split, is_repeated = self._split_of(row.split, root)
            groups = [] if is_repeated else self._adapted(root, split)
            if not is_repeated:
                self._note_unused(value, root.read or set())
        else:
            root.expected("an object")
        self.problems.extend(map(self._columns.original, problems))
        return [] if problems else groups

    def _note_unused(self, row: Mapping[str, Any], read: set[str]) -> None:
        self.unused.update(
            self._columns.name_of(str(key)) for key in row.keys() - read if says(row[key])
        )
        self.unused.update(map(self._columns.name_of, self._keys.elements()))
        self._keys.clear()

    def _split_of(self, split: str | None, root: Field) -> tuple[str | None, bool]:
        """The split of a row, and whether that split only repeats others."""
        if root.has("split"):
            split = root["split"].text()
        if split is None:
            return None, False
        split = self.adapter.splits.get(split, split)
        if split is None:
            self.counts["rows_of_other_splits"] += 1
            return None, True
        split = split_name(split)
        drawn = root.has("split") and split == "train" and self.options.test_size
        return None if drawn else split, False

    def _adapted(self, root: Field, split: str | None) -> list[Group]:
        parsed = self.adapter.parse(root, self._score)
        tools = self.adapter.tools(root)
        name = _name_of(root)
        prompts = [with_system(root, prompt) for prompt, _ in parsed]
        if root.problems:
            return []
        groups = []
        for prompt, (_, responses) in zip(prompts, parsed, strict=True):
            usable = self._usable(responses)
            different = {response.message for response in usable}
            if (self.adapter.several_a_row and len(usable) < 2) or (
                any(map(is_sampled, responses)) and len(different) < 2
            ):
                self.counts["prompts_with_one_response"] += 1
                continue
            self.counts["one_sided_scores"] += has_one_sided_score(root)
            distinct = self._checked(root, usable, 1 if self.adapter.one_response_a_row else 2)
            groups.append(Group(prompt, distinct, source_id=name, split=split, tools=tools))
        return groups

    def _usable(self, responses: Sequence[Response]) -> list[Response]:
        """The responses without those whose status leaves them out, which are counted."""
        usable = []
        for response in responses:
            if response.status is None or response.status in self.options.keep_status:
                usable.append(response)
            else:
                self.counts[f"{response.status}_responses"] += 1
        return usable

    def _checked(
        self, root: Field, responses: Sequence[Response], at_least: int
    ) -> tuple[Response, ...]:
        distinct, merged = checked_responses(root, responses, at_least)
        if not root.problems:
            self.counts["merged_responses"] += merged
        return distinct

    def _gathered(self, groups: Iterator[Group]) -> Iterator[Group]:
        """One group of all the rows of a prompt, in the place of its first row."""
        by_prompt: dict[str, list[Group]] = {}
        for group in groups:
            by_prompt.setdefault(group.prompt_id, []).append(group)
        for same in by_prompt.values():
            self.counts["prompts_in_two_splits"] += len({group.split for group in same}) > 1
            responses = [response for group in same for response in group.responses]
            if len({response.message for response in responses}) < 2:
                self.counts["prompts_with_one_response"] += 1
                continue
            problems: list[Problem] = []
            prompt = shorten(same[0].prompt[-1].content)
            root = Field(None, "", f"{self.source}: the prompt {prompt}", problems)
            distinct = self._checked(root, responses, at_least=2)
            self.problems.extend(problems)
            if not problems:
                yield replace(same[0], responses=distinct)

    def _settled(self, groups: Iterator[Group]) -> Iterator[Group]:
        """The groups of the wanted split, counted; of each split the first ones where so many are
        wished, and no row is read after them if all the splits that there can be are known."""
        noticing = Noticing(self.counts, by_verdict=bool(self.adapter.verdict))
        wanted = self.options.split
        drawn = None if self._names_splits else self._draw.names
        room = Room(self.options.limit, drawn if wanted in (None, "all") else {wanted})
        for group in self._draw.splits(self._counting_drawn(groups), self.counts):
            group = noticing.settle_split(group)
            self._splits[group.split] += 1
            if wanted in (None, "all", group.split) and room.takes(group.split):
                noticing.notice(group)
                self.counts["groups"] += 1
                yield group
            if room.is_full:
                return

    def _counting_drawn(self, groups: Iterator[Group]) -> Iterator[Group]:
        for group in groups:
            self.drawn += group.split is None and self._draw.holds_out
            yield group

    def _doubt_verdicts(self) -> None:
        """Warn of a verdict that always names the same side; refuse it where that is no chance.

        Raises:
            UsageError: the column is read the wrong way, or is no verdict at all.
        """
        side, total = preferred_side(self.counts)
        if not side or total < FEW_VERDICTS:
            return
        self.counts["one_sided_verdicts"] = total
        if total >= ENOUGH_VERDICTS:
            first, second, verdict = map(self._columns.name_of, self.adapter.verdict)
            better, worse = (first, second) if side == "first" else (second, first)
            raise UsageError(
                f"{self.source}: {verdict} prefers the {side} response in all {total:,} groups "
                f"that it decides, as the adapter {self.adapter.name} reads it",
                f"if it names the better one, --map a={first},b={second},winner={verdict} (or "
                f"winner_index= where 0 is a, a_wins= where 1 is a); if {better} is always better, "
                f"--map chosen={better},rejected={worse}",
            )

    def _error(self) -> DataError:
        total, rows = len(self.problems), self.counts["rows"]
        return DataError(
            f"{self.source}: {_number(total, 'problem')} in {_number(rows, 'row')}, "
            f"read by the adapter {self.adapter.name} ({self.reason})",
            self.problems,
            "correct the rows, choose another --data-adapter or --map; --skip-bad leaves them out",
        )

    def _nothing_left(self) -> UsageError:
        if self._splits:
            splits = ", ".join(f"{name} ({number:,})" for name, number in self._splits.items())
            return UsageError(
                f"{self.source}: no group is in the split {self.options.split!r}, but in {splits}",
                "name one of these, or hold some prompts out with --test-size 0.1",
            )
        counts = ", ".join(f"{name} {number:,}" for name, number in self.counts.items() if number)
        cut = self.counts["truncated_responses"]
        return UsageError(
            f"{self.source}: no group to read ({counts or 'no rows'})",
            "--keep-status truncated keeps answers that were cut" if cut else None,
        )


def _number(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _name_of(root: Field) -> str | None:
    """A row's own name, after that of the part of the data where a column `subset` has one."""
    name = root["id"].name() if root.has("id") else None
    if not root.has("subset"):
        return name
    part = root["subset"].name()
    return part if name is None else f"{part}/{name}"


def _kind_of_score(adapter: Adapter, score: str | None) -> str:
    if score is None:
        return adapter.scores[0] if adapter.scores else ""
    if score not in adapter.scores:
        kinds = f"one of {', '.join(adapter.scores)}" if adapter.scores else "one kind only"
        raise UsageError(
            f"--score {score}: the adapter {adapter.name} has {kinds}",
            did_you_mean(score, adapter.scores),
        )
    return score
