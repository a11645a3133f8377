"""What the user's word for a source means: a file, a folder, or a data set of the hub."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mrpo_tools.errors import UsageError, did_you_mean
from mrpo_tools.sources.known import KNOWN
from mrpo_tools.sources.readers import hub
from mrpo_tools.sources.readers.delimited import read_delimited
from mrpo_tools.sources.readers.rows import Problem, Reading, Row, Unreadable
from mrpo_tools.sources.readers.tables import read_parquet
from mrpo_tools.sources.readers.text import read_json, read_lines

Reader = Callable[[Path, Reading], Iterator[Row | Problem]]

READERS: dict[str, Reader] = {
    ".jsonl": read_lines,
    ".ndjson": read_lines,
    ".json": read_json,
    ".csv": read_delimited(","),
    ".tsv": read_delimited("\t"),
    ".parquet": read_parquet,
}
PACKED = (".gz", ".zst")
_ACCEPTED = ".jsonl, .json, .csv, .tsv (also .gz and .zst of these) or .parquet"
_ABOUT_THE_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_SHARD = re.compile(r"-\d+-of-\d+.*$")
_SPLIT_NAME = re.compile(r"(train|test|validation|valid|val|dev|eval)([_-].*)?")
_VALIDATION = {"valid", "val", "dev"}
_HUB_ID = re.compile(
    r"(?P<id>\w[\w.-]*/[\w.-]+)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?", re.ASCII
)


@dataclass(frozen=True)
class Located:
    """A source that exists, by its short name.

    Attributes:
        name: file-system-safe; the file's or the data set's name without its folder.
        rows: starts reading.
        files: all that is read, where that lies on this machine.
        test_size: the share that papers hold out of a named data set; 0 where they do not.
        train_groups: how many groups papers train on, the rest being held out; None for a share.
    """

    name: str
    rows: Callable[[Reading], Iterator[Row | Problem]]
    files: tuple[Path, ...] = ()
    test_size: float = 0.0
    train_groups: int | None = None


def locate(source: str | Path) -> Located:
    """Find what `source` names.

    Raises:
        UsageError: nothing of that name exists, or it is no kind of data that can be read.
    """
    word = str(source)
    if not word.strip():
        raise UsageError("the name of the source is empty", _way_out())
    try:
        path = Path(word).expanduser()
        if path.is_dir():
            return _folder(path)
        if path.is_file():
            return _file(path)
        exists = path.exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, nobody's home
        exists = False
    if exists:
        raise UsageError(f"{word}: neither a file nor a folder", f"give {_ACCEPTED}, or a folder")
    return _remote(word)


def _remote(word: str) -> Located:
    name, at, revision = word.partition("@")
    if name in KNOWN:
        data = KNOWN[name]
        word = f"{data.hub_id}{':' if data.config else ''}{data.config or ''}{at}{revision}"
        return replace(
            _remote(word), name=name, test_size=data.test_size, train_groups=data.train_groups
        )
    match = _HUB_ID.fullmatch(word)
    if match is None or _reader_of(Path(word)) or word.startswith((".", "~", "/")):
        hint = did_you_mean(word, KNOWN) if "/" not in word and "." not in word else None
        raise UsageError(f"{word[:200]}: no such file or folder", hint or _way_out())
    parts = match.groupdict()
    return Located(
        safe_name(parts["id"].split("/")[1]),
        lambda reading: hub.read_hub(parts["id"], parts["config"], parts["revision"], reading),
    )


def _way_out() -> str:
    return f"give {_ACCEPTED}, a folder of these, a hub id owner/name, or one of {', '.join(KNOWN)}"


def _file(path: Path) -> Located:
    if _reader_of(path) is None:
        kind = f"{''.join(path.suffixes[-2:])} files" if path.suffix else "a file without a suffix"
        raise UsageError(f"{path}: cannot read {kind}", f"give {_ACCEPTED}")
    return Located(
        safe_name(_stem(path)), lambda reading: _read_files([(path, None)], reading), (path,)
    )


def _folder(folder: Path) -> Located:
    name = safe_name(folder.resolve().name)
    if hub.is_saved(folder):
        saved = tuple(sorted(path for path in folder.rglob("*") if path.is_file()))
        return Located(name, lambda reading: hub.read_saved(folder, reading), saved)
    inside = [*folder.iterdir(), *(folder / "data").glob("*")]
    files = [
        (path, split_of_file(path))
        for path in inside
        if _reader_of(path) and path.is_file() and path.name not in _ABOUT_THE_DATA
    ]
    if not files:
        raise UsageError(f"{folder}: a folder without data", f"it needs {_ACCEPTED} files")
    if {split for _, split in files} == {"train"}:  # not split: what is held out can be drawn
        files = [(path, None) for path, _ in files]
    files.sort(key=lambda file: (not (file[1] or "").startswith("train"), str(file[0])))
    paths = tuple(path for path, _ in files)
    return Located(name, lambda reading: _read_files(files, reading), paths)


def _read_files(files: list[tuple[Path, str | None]], reading: Reading) -> Iterator[Row | Problem]:
    reading.total = sum(path.stat().st_size for path, _ in files)
    return itertools.chain.from_iterable(_read_file(*file, reading) for file in files)


def _read_file(path: Path, split: str | None, reading: Reading) -> Iterator[Row | Problem]:
    """The rows of one file; what stops its reader becomes the last problem."""
    reader = _reader_of(path) or read_lines
    try:
        for item in reader(path, reading):
            yield replace(item, split=split) if split and isinstance(item, Row) else item
    except Unreadable as stop:
        yield stop.problem
    except PermissionError:
        yield Problem(f"{path}", "file", "no permission to read it", fatal=True)
    reading.done += path.stat().st_size


def _reader_of(path: Path) -> Reader | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] and suffixes[-1] in PACKED:
        kind = suffixes[-2] if len(suffixes) > 1 else ""
        return READERS.get(kind) if kind != ".parquet" else None
    return READERS.get(path.suffix.lower())


def _stem(path: Path) -> str:
    return (path.with_suffix("") if path.suffix.lower() in PACKED else path).stem


def split_of_file(path: Path) -> str | None:
    """The split that a file's name says: `test` of test.jsonl or test-00000-of-00001.parquet."""
    name = _SHARD.sub("", _stem(path))
    return split_name(name) if _SPLIT_NAME.fullmatch(name) else None


def split_name(name: str) -> str:
    """A split by the name that all data sets share: val, valid and dev are `validation`."""
    return "validation" if name in _VALIDATION else name


def safe_name(text: str) -> str:
    """A short name that any file system takes."""
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")
    return safe[:64] or "data"
