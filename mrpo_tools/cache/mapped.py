"""Groups in a file that is mapped into memory: a group is made when it is asked for.

Texts stay in the file; facts of all groups are columns of it, which a run needs before its first
step.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mrpo_tools.groups import Group, GroupTable, Response, group_from_dict
from mrpo_tools.groups.facts import Facts, Keys, Places, keys_of_bytes, prompt_bytes
from mrpo_tools.messages import json_text, message_from_dict

ROWS = 8192
"""Of a batch of the file."""
_ID = pa.binary(16)
_RESPONSE = pa.struct(
    [
        pa.field("id", _ID),
        pa.field("content", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("chosen", pa.bool_()),
        pa.field("model", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("status", pa.string()),
        pa.field("num_bytes", pa.int64()),
    ]
)
ABOUT = ("content", "score", "chosen", "model", "finish_reason", "status")
"""Of a response of mere text."""
SCHEMA = pa.schema(
    [
        pa.field("group_id", _ID),
        pa.field("prompt_id", _ID),
        pa.field("split", pa.string()),
        pa.field("source_id", pa.string()),
        pa.field("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        pa.field("prompt_bytes", pa.int64()),
        pa.field("responses", pa.list_(_RESPONSE)),
        pa.field("structured", pa.string()),
    ]
)
"""`structured` is JSON of a group of more than text, whose texts are then not in the others."""


def write_groups(file: BinaryIO, groups: Iterable[Group], rows: int = ROWS) -> None:
    """Write groups, one batch of so many in memory at a time."""
    values = map(_row, groups)
    with pa.ipc.new_file(file, SCHEMA) as writer:
        while batch := list(islice(values, rows)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=SCHEMA))


def _row(group: Group) -> dict[str, Any]:
    plain = group.is_plain
    return {
        "group_id": bytes.fromhex(group.group_id),
        "prompt_id": bytes.fromhex(group.prompt_id),
        "split": group.split,
        "source_id": group.source_id,
        "prompt": [turn.as_dict() for turn in group.prompt] if plain else [],
        "prompt_bytes": prompt_bytes(group),
        "responses": [
            {
                "id": bytes.fromhex(key),
                "content": response.content if plain else None,
                "score": response.score,
                "chosen": response.chosen,
                "model": response.model,
                "finish_reason": response.finish_reason,
                "status": response.status,
                "num_bytes": len(response.message.written.encode()),
            }
            for key, response in zip(group.response_ids, group.responses, strict=True)
        ],
        "structured": None if plain else json_text(group.as_dict()),
    }


class MappedGroups(GroupTable):
    """Groups of a file.

    Args:
        batches: of the file, in its order.
        places: of the groups among all of the file; None takes all.
        facts: of all groups of the file.
    """

    def __init__(
        self, batches: Sequence[pa.RecordBatch], places: Places | None = None,
        facts: MappedFacts | None = None,
    ) -> None:  # fmt: skip
        self._batches = batches
        self._ends = np.cumsum([batch.num_rows for batch in batches], dtype=np.int64)
        self._every = facts or MappedFacts(batches)
        total = int(self._ends[-1]) if len(batches) else 0
        self._places = np.arange(total) if places is None else places
        self._is_whole = places is None

    @classmethod
    def of_file(cls, path: Path) -> MappedGroups:
        """The groups of a file, which is mapped, not read.

        Raises:
            OSError, pa.ArrowException: it cannot be.
        """
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if reader.schema != SCHEMA:
            raise pa.ArrowInvalid(f"{path} has other columns")
        return cls([reader.get_batch(n) for n in range(reader.num_record_batches)])

    @cached_property
    def facts(self) -> Facts:
        """Columns of the file."""
        return self._every if self._is_whole else ChosenFacts(self._every, self._places)

    def take(self, places: Places) -> MappedGroups:
        """The groups at these places."""
        return MappedGroups(self._batches, self._places[places], self._every)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        place = int(self._places[index])
        number = int(np.searchsorted(self._ends, place, side="right"))
        batch = self._batches[number]
        row = batch.slice(place - int(self._ends[number]) + batch.num_rows, 1)
        return _group(row.to_pylist()[0])

    def __iter__(self) -> Iterator[Group]:
        return (self[place] for place in range(len(self)))


def _group(row: dict[str, Any]) -> Group:
    if row["structured"] is not None:
        return group_from_dict(json.loads(row["structured"]))
    return Group(
        tuple(map(message_from_dict, row["prompt"])),
        tuple(
            Response(**{name: response[name] for name in ABOUT}) for response in row["responses"]
        ),
        row["source_id"],
        row["split"],
    )


class MappedFacts(Facts):
    """Facts of all groups of a file, from its columns."""

    def __init__(self, batches: Sequence[pa.RecordBatch]) -> None:
        super().__init__([])
        self._batches = batches

    @cached_property
    def sizes(self) -> Places:
        """[G] responses of each group."""
        return self._joined(
            np.int64, (np.diff(batch["responses"].offsets.to_numpy()) for batch in self._batches)
        )

    @cached_property
    def splits(self) -> npt.NDArray[np.object_]:
        """[G] the split's name, or None."""
        columns = (batch["split"].dictionary_encode() for batch in self._batches)
        return self._joined(object, (column.to_numpy(zero_copy_only=False) for column in columns))

    @cached_property
    def group_keys(self) -> Keys:
        """[G, 2]."""
        return self._keys(batch["group_id"] for batch in self._batches)

    @cached_property
    def prompt_keys(self) -> Keys:
        """[G, 2]."""
        return self._keys(batch["prompt_id"] for batch in self._batches)

    @cached_property
    def response_keys(self) -> Keys:
        """[R, 2]."""
        return self._keys(self._responses("id"))

    @cached_property
    def scores(self) -> npt.NDArray[np.float64]:
        """[R] NaN where a response has none."""
        columns = (column.to_numpy(zero_copy_only=False) for column in self._responses("score"))
        return self._joined(np.float64, columns)

    @cached_property
    def labels(self) -> npt.NDArray[np.int8]:
        """[R] 1 chosen, 0 rejected, −1 without a label."""
        columns = (column.cast(pa.int8()).fill_null(-1) for column in self._responses("chosen"))
        return self._joined(np.int8, (column.to_numpy() for column in columns))

    @cached_property
    def num_bytes(self) -> Places:
        """[R] bytes of each response's text."""
        return self._joined(np.int64, (c.to_numpy() for c in self._responses("num_bytes")))

    @cached_property
    def prompt_bytes(self) -> Places:
        """[G] bytes of each prompt's text and tools."""
        return self._joined(np.int64, (b["prompt_bytes"].to_numpy() for b in self._batches))

    def _responses(self, name: str) -> Iterator[pa.Array]:
        return (batch["responses"].values.field(name) for batch in self._batches)

    @staticmethod
    def _joined(dtype: Any, arrays: Iterable[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return np.concatenate([np.zeros(0, dtype=dtype), *arrays])

    @staticmethod
    def _keys(columns: Iterable[pa.Array]) -> Keys:
        none = np.zeros((0, 2), dtype=np.uint64)
        return np.concatenate([none, *(keys_of_bytes(c.buffers()[1]) for c in columns if len(c))])


class ChosenFacts(Facts):
    """Facts of some groups of a file.

    Args:
        every: of all.
        places: of these among them.
    """

    def __init__(self, every: Facts, places: Places) -> None:
        super().__init__([])
        self._every, self._places = every, places

    @cached_property
    def _rows(self) -> Places:
        """[R] places of their responses among all."""
        ends = np.cumsum(self._every.sizes)
        first = (ends - self._every.sizes)[self._places]
        return first[self.owners] + self.columns

    @cached_property
    def sizes(self) -> Places:
        """[G] responses of each group."""
        return self._every.sizes[self._places]

    @cached_property
    def splits(self) -> npt.NDArray[np.object_]:
        """[G] the split's name, or None."""
        return self._every.splits[self._places]

    @cached_property
    def group_keys(self) -> Keys:
        """[G, 2]."""
        return self._every.group_keys[self._places]

    @cached_property
    def prompt_keys(self) -> Keys:
        """[G, 2]."""
        return self._every.prompt_keys[self._places]

    @cached_property
    def response_keys(self) -> Keys:
        """[R, 2]."""
        return self._every.response_keys[self._rows]

    @cached_property
    def scores(self) -> npt.NDArray[np.float64]:
        """[R] NaN where a response has none."""
        return self._every.scores[self._rows]

    @cached_property
    def labels(self) -> npt.NDArray[np.int8]:
        """[R] 1 chosen, 0 rejected, −1 without a label."""
        return self._every.labels[self._rows]

    @cached_property
    def num_bytes(self) -> Places:
        """[R] bytes of each response's text."""
        return self._every.num_bytes[self._rows]

    @cached_property
    def prompt_bytes(self) -> Places:
        """[G] bytes of each prompt's text and tools."""
        return self._every.prompt_bytes[self._places]
