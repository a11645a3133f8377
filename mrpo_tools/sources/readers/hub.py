"""Data sets of the `datasets` library: folders it saved, and ids of the Hugging Face hub."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mrpo_tools.errors import ResourceError, UsageError
from mrpo_tools.files import save_json
from mrpo_tools.sources.readers.rows import Problem, Reading, Row
from mrpo_tools.sources.readers.tables import BATCH_ROWS, batch_rows


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def read_saved(folder: Path, reading: Reading) -> Iterator[Row | Problem]:
    """The rows of a folder that `save_to_disk` wrote; the names of a DatasetDict are splits."""
    import datasets

    try:
        data = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises whatever its loaders meet
        raise UsageError(
            f"{folder}: cannot be read as a saved data set: {_in_one_line(error)}",
            "save it again with datasets' save_to_disk, or as .jsonl or .parquet",
        ) from error
    return _rows(data, str(folder), reading)


def read_hub(
    hub_id: str, config: str | None, revision: str | None, reading: Reading
) -> Iterator[Row | Problem]:
    """The rows of a data set on the hub, downloaded once into the cache of `datasets`.

    The commit that was read becomes `reading.revision`, and is recorded when it is first seen.
    """
    import datasets

    try:
        builder = datasets.load_dataset_builder(hub_id, config, revision=revision)
        builder.download_and_prepare()
        data = builder.as_dataset()
        reading.revision = builder.hash and str(builder.hash)
    except Exception as error:  # the library raises whatever its loaders meet
        raise UsageError(
            f"{hub_id}: no such file, and it cannot be loaded from the Hugging Face hub: "
            f"{_in_one_line(error)}",
            "check the spelling, the network and HF_TOKEN, or give the path of a file",
        ) from error
    if reading.revision:
        record_revision(f"{hub_id}:{config}" if config else hub_id, reading.revision)
    return _rows(data, hub_id, reading)


def revisions_file() -> Path:
    """Where the commits of downloaded data sets are recorded, with the time of the first use."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "mrpo" / "data-set-revisions.json"


def record_revision(name: str, revision: str) -> None:
    """Note the commit of a data set; one that is there already keeps its time.

    A place that cannot be written is no reason to refuse the data: the run records the commit too.
    """
    path = revisions_file()
    revisions = recorded_revisions()
    if revision in revisions.get(name, {}):
        return
    revisions.setdefault(name, {})[revision] = datetime.now(UTC).isoformat(timespec="seconds")
    with contextlib.suppress(OSError, ResourceError):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_json(path, revisions)


def recorded_revisions() -> dict[str, dict[str, str]]:
    """Data set -> commit -> when it was first read here; the oldest first."""
    try:
        revisions = json.loads(revisions_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return revisions if isinstance(revisions, dict) else {}


def _rows(data: Any, name: str, reading: Reading) -> Iterator[Row | Problem]:
    """The rows of a Dataset or a DatasetDict, which knows its splits.

    Data that is all `train` has not been split: what is held out of it can be drawn.
    """
    splits = dict(data) if hasattr(data, "keys") else {None: data}
    if list(splits) == ["train"]:
        splits = {None: splits["train"]}
    reading.total = sum(table.num_rows for table in splits.values())
    reading.done = 0
    for split, table in splits.items():
        where = f"{name}[{split}]" if split else name
        start = 0
        for piece in table.with_format("arrow").iter(batch_size=BATCH_ROWS):
            for batch in piece.to_batches():
                for item in batch_rows(batch, where, start):
                    yield Row(item.where, item.value, split) if isinstance(item, Row) else item
                start += batch.num_rows
            reading.tick(start)
        reading.done += start


def _in_one_line(error: BaseException) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) < 300 else words[:299] + "…"
