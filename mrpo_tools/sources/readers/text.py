"""Text files to rows: JSON lines and JSON arrays, plain or compressed, never held whole."""

from __future__ import annotations

import codecs
import gzip
import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from mrpo_tools.sources.readers.rows import (
    MAX_ROW_BYTES,
    Problem,
    Reading,
    Row,
    Unreadable,
    refuse_bomb,
)
from mrpo_tools.sources.readers.strict_json import (
    DuplicateKey,
    JsonError,
    decode,
    parse_line,
    skip_space,
)

CHUNK_BYTES = 2**20
TOO_LONG = f"longer than {MAX_ROW_BYTES // 2**20} MiB; a row of preference data is far shorter"
_BOMS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_lines(path: Path, reading: Reading) -> Iterator[Row | Problem]:
    """The rows of a JSON-lines file; empty lines are skipped and counted."""
    return _line_rows(path, chunks_of(path, reading), reading)


def read_json(path: Path, reading: Reading) -> Iterator[Row | Problem]:
    """The rows of a JSON array of objects, or of JSON lines under the name `.json`."""
    chunks = chunks_of(path, reading)
    head = b""
    while not head.strip():
        chunk = next(chunks, None)
        if chunk is None:
            break
        head += chunk
    chunks = itertools.chain([head], chunks)
    if head.lstrip()[:1] == b"[":
        return _array_rows(path, chunks, reading.mark)
    if head.split(b"\n", 1)[0].strip() == b"{":
        raise Unreadable(f"{path}:1", "JSON", "one object; expected an array of objects")
    return _line_rows(path, chunks, reading)


def chunks_of(path: Path, reading: Reading) -> Iterator[bytes]:
    """The decompressed bytes in pieces, without a byte order mark."""
    with path.open("rb") as raw:
        stream = _decompressed(raw, path)
        expanded, empty, reading.mark = 0, True, 0
        while chunk := _read(stream, path):
            if empty:
                rest = _without_bom(chunk, path)
                reading.mark += len(chunk) - len(rest)
                chunk, empty = rest, not rest
            expanded += len(chunk)
            refuse_bomb(path, expanded)
            reading.tick(raw.tell())
            yield chunk
        if empty:
            raise Unreadable(f"{path}", "file", "empty; expected rows")


def _decompressed(raw: IO[bytes], path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if path.suffix.lower() == ".zst":
        import pyarrow as pa

        return cast(IO[bytes], pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"))
    return raw


def _read(stream: IO[bytes], path: Path) -> bytes:
    try:
        return stream.read(CHUNK_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        kind = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix.lower(), "file")
        raise Unreadable(f"{path}", kind, f"damaged or cut short ({error})") from None


def _without_bom(chunk: bytes, path: Path) -> bytes:
    for mark, encoding in _BOMS.items():
        if chunk.startswith(mark):
            raise Unreadable(
                f"{path}:1",
                encoding,
                f"expected UTF-8; convert it with: iconv -f {encoding} -t UTF-8",
            )
    return chunk.removeprefix(codecs.BOM_UTF8)


def _lines(path: Path, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines without their line feed; a last line needs none."""
    number, parts, size = 1, [], 0
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        parts.append(first)
        size += len(first)
        for piece in others:
            yield b"".join(parts)
            number, parts, size = number + 1, [piece], len(piece)
        if size > MAX_ROW_BYTES:
            raise Unreadable(f"{path}:{number}", "line", TOO_LONG)
    if size:
        yield b"".join(parts)


def _line_rows(path: Path, chunks: Iterator[bytes], reading: Reading) -> Iterator[Row | Problem]:
    offset = 0
    for number, line in enumerate(_lines(path, chunks), 1):
        where = f"{path}:{number}"
        if line.strip():
            yield _line_row(where, line, reading.mark + offset)
        else:
            reading.counts["empty_lines"] += 1
        offset += len(line) + 1


def _line_row(where: str, line: bytes, offset: int) -> Row | Problem:
    """The row of one line, which starts `offset` bytes into the file."""
    if b"\0" in line:
        return Problem(where, "NUL", f"at byte {line.index(0) + 1}; expected UTF-8 text")
    try:
        return Row(where, parse_line(line.decode()))
    except UnicodeDecodeError as error:
        return Problem(where, "UTF-8", _bad_byte(error, offset))
    except JsonError as error:
        return Problem(where, "JSON", error.in_line((error.position or 0) + 1))


def _bad_byte(error: UnicodeDecodeError, offset: int) -> str:
    byte = error.object[error.start]
    return f"invalid byte 0x{byte:02x} at byte {offset + error.start} of the file"


def _array_rows(path: Path, chunks: Iterator[bytes], offset: int) -> Iterator[Row | Problem]:
    """The elements of an array, each with the line it starts on."""
    window = _Window(path, decoded(path, chunks, offset))
    window.advance(1)
    closed = window.next_character() == "]"
    while not closed:
        window.next_character()
        yield window.element()
        match window.next_character():
            case ",":
                window.advance(1)
                if window.next_character() == "]":
                    window.stop("a comma before ']'")
            case "]":
                closed = True
            case "":
                window.stop("the array does not end (is the file cut short?)")
            case other:
                window.stop(f"found {other!r} after an element, expected ',' or ']'")
    window.advance(1)
    if other := window.next_character():
        window.stop(f"found {other!r} after the array's end")


def decoded(path: Path, chunks: Iterator[bytes], done: int) -> Iterator[str]:
    """The text in pieces, after `done` bytes of the file; a character may lie across two chunks."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    for chunk in itertools.chain(chunks, [b""]):  # after the last, no character may be cut
        held = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            line += error.object.count(b"\n", 0, error.start)
            raise Unreadable(f"{path}:{line}", "UTF-8", _bad_byte(error, done - held)) from None
        line += text.count("\n")
        done += len(chunk)
        yield text


class _Window:
    """A sliding piece of a text, with the line and the column of its reading position.

    A whole array in memory takes four bytes a character as soon as one of them is an emoji:
    1,522 MiB for a file of 324 MiB, where the window takes 53 (docs/data.md, Measured).
    """

    def __init__(self, path: Path, pieces: Iterator[str]) -> None:
        self.path = path
        self.pieces = pieces
        self.text = ""
        self.at = 0
        self.line = 1
        self.column = 1
        self.next_character()

    def stop(self, reason: str) -> None:
        raise Unreadable(f"{self.path}:{self.line}", "JSON", reason)

    def advance(self, characters: int) -> None:
        end = self.at + characters
        self.line += self.text.count("\n", self.at, end)
        feed = self.text.rfind("\n", self.at, end)
        self.column = self.column + characters if feed < 0 else end - feed
        self.at = end

    def more(self) -> bool:
        """Drop what was read and append as much again; False at the end of the text."""
        rest = self.text[self.at :]
        added = list(itertools.islice(self.pieces, 1 + len(rest) // CHUNK_BYTES))
        self.text, self.at = "".join([rest, *added]), 0
        return bool(added)

    def next_character(self) -> str:
        """The next character that is no space, which becomes the position; none at the end."""
        while True:
            self.advance(skip_space(self.text, self.at) - self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def element(self) -> Row | Problem:
        """Read the value at the position and move behind it."""
        where = f"{self.path}:{self.line}"
        while True:
            element: Row | Problem
            try:
                value, end = decode(self.text, self.at)
                element = Row(where, value)
            except DuplicateKey as error:
                element, end = Problem(where, "JSON", error.reason), error.end
            except JsonError as error:
                if error.at_end and self._grow(where):
                    continue
                if error.position is not None:
                    self.advance(error.position - self.at)
                self.stop(error.in_line(self.column))
            if end < len(self.text) or not self._grow(where):
                self.advance(end - self.at)
                return element

    def _grow(self, where: str) -> bool:
        if len(self.text) - self.at > MAX_ROW_BYTES:
            raise Unreadable(where, "row", TOO_LONG)
        return self.more()
