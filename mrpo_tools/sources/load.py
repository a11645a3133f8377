"""A whole source in memory: the entry point of the Python API."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrpo_tools.config import Dataset
from mrpo_tools.errors import DataError
from mrpo_tools.groups import Group
from mrpo_tools.sources.locate import locate
from mrpo_tools.sources.readers.rows import Problem, Reading, Row, ignore_progress
from mrpo_tools.sources.stream import GroupStream, Options
from mrpo_tools.words import KeptStatus


@dataclass(frozen=True)
class Source:
    """What was read.

    Attributes:
        name: short and file-system-safe: `demo` of data/demo.jsonl.
        groups: in the order of the data.
        adapter: the name of the adapter that understood the rows.
        reason: why it was chosen, for people.
        counts: what there was and what was unusual, by the names in `COUNTS`.
        unused: rows that hold anything in a column that is not read, by the column; messages and
            responses with a key that is not, by its path.
        revision: the commit of a hub data set, else None.
        skipped: what was wrong with the rows that were left out on request.
        drawn: how many groups are in a split by draw, not because the data says so.
    """

    name: str
    groups: Sequence[Group]
    adapter: str
    reason: str
    counts: dict[str, int]
    revision: str | None = None
    unused: dict[str, int] = field(default_factory=dict)
    skipped: list[Problem] = field(default_factory=list)
    drawn: int = 0


def load_groups(
    source: str | Path,
    *,
    adapter: str | None = None,
    mapping: Mapping[str, str] | None = None,
    split: str | None = None,
    limit: int | None = None,
    test_size: float | None = None,
    validation_size: float = 0.0,
    seed: int = 0,
    score: str | None = None,
    skip_bad: bool = False,
    keep_status: Collection[KeptStatus] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> Source:
    """Read and check a data set; nothing is returned unless every row is good.

    Example:
        >>> source = load_groups("data/demo.jsonl", split="train")  # doctest: +SKIP
        >>> source.groups[0].prompt_id  # doctest: +SKIP

    Args:
        source: a .jsonl, .json, .csv, .tsv or .parquet file, a folder of these or of
            `save_to_disk`, a hub id `owner/name[:config][@revision]`, or a name of `KNOWN`.
        adapter: a name of `ADAPTERS`; chosen from the columns when None.
        mapping: column names of an adapter to those of the data, `{"prompt": "question"}`.
        split: keep this one; None and `all` keep every split.
        limit: the first so many groups of each split; reading stops where every split has them,
            if the data names none.
        test_size: share of the prompts that go to `test` where the data names no split. None: as
            the papers split a named data set, else 0.
        validation_size: share of the prompts of `train` that go to `validation`.
        seed: of these choices.
        score: which kind of score, for data that has several.
        skip_bad: leave rows with problems out and count them; False refuses the source.
        keep_status: sampled answers of these statuses are kept, which are left out otherwise.
        on_progress: called with (done, total), in bytes of files or rows of a hub data set.

    Raises:
        DataError: with all problems of all rows.
        UsageError: the source does not exist, no adapter understands its columns, or no group is
            in the split.
    """
    return _whole(
        source,
        Options(
            adapter=adapter,
            mapping=mapping or {},
            split=split,
            limit=limit,
            test_size=test_size,
            validation_size=validation_size,
            seed=seed,
            score=score,
            skip_bad=skip_bad,
            keep_status=keep_status,
            on_progress=on_progress or ignore_progress,
        ),
    )


def read_rows(source: str | Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a source as they are, whatever they mean: for a conversion of one's own.

    Example:
        >>> next(read_rows("data/demo.jsonl")).keys()  # doctest: +SKIP

    Raises:
        DataError: a row that cannot be read, or is no object.
        UsageError: the source does not exist.
    """
    for item in locate(source).rows(Reading()):
        if isinstance(item, Row) and isinstance(item.value, Mapping):
            yield item.value
        else:
            problem = item if isinstance(item, Problem) else f"{item.where}: row: no object"
            raise DataError(f"{source}: a row cannot be read", [problem], "correct the row")


def load_dataset(
    dataset: Dataset, on_progress: Callable[[int, int], None] = ignore_progress
) -> Source:
    """Read and check the data that a project or a run names.

    Raises:
        As `load_groups`.
    """
    return _whole(dataset.source, Options.of(dataset, on_progress=on_progress))


def _whole(source: str | Path, options: Options) -> Source:
    stream = GroupStream(source, options)
    return source_of(stream, list(stream))


def source_of(stream: GroupStream, groups: Sequence[Group]) -> Source:
    """What was read, once the stream is at its end."""
    return Source(
        name=stream.name,
        groups=groups,
        adapter=stream.adapter.name,
        reason=stream.reason,
        counts=dict(stream.counts),
        revision=stream.revision,
        unused=dict(stream.unused),
        skipped=stream.problems,
        drawn=stream.drawn,
    )
