"""Tensors of a model's safetensors files, read a few at a time.

Nothing is mapped and no file is read whole, so that a model may be larger than the memory and the
address space of the process. A file is what its header says, byte for byte, or it is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrpo_tools.errors import ResourceError, UsageError
from mrpo_tools.references.model_files import AGAIN, first_line, weight_files

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""What a header calls the formats that can be read."""
LENGTH_BYTES = 8
MOST_HEADER_BYTES = 100_000_000


class Place(NamedTuple):
    """Where a tensor lies.

    Attributes:
        path: its file.
        start, end: its bytes in the file.
        dtype: of its numbers.
        shape: of it.
    """

    path: Path
    start: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.end - self.start


class WeightReader:
    """The tensors of a model's directory, by name.

    Args:
        model: the directory.

    Attributes:
        places: where each tensor lies.

    Raises:
        UsageError: a file is missing, cut short or damaged.
    """

    def __init__(self, model: Path) -> None:
        self.places: dict[str, Place] = {}
        for path in weight_files(model):
            self.places |= _places(path)

    def bytes_of(self, names: Iterable[str]) -> int:
        """Bytes of some tensors, as they lie on the disk."""
        return sum(self.places[name].size for name in names)

    def read(self, names: Iterable[str], *, pinned: bool = False) -> dict[str, Tensor]:
        """Some tensors, on the CPU.

        Args:
            names: of them.
            pinned: in memory that an accelerator copies from by itself.

        Raises:
            ResourceError: the disk fails.
            UsageError: a file is not there any more, or shorter than it was.
        """
        return {name: _read(name, self.places[name], pinned=pinned) for name in names}


def _places(path: Path) -> dict[str, Place]:
    """Of every tensor in a file, from its header."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if length > min(size, MOST_HEADER_BYTES):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        first = LENGTH_BYTES + length
        places = {
            name: _place(path, first, entry)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = first_line(error)
        raise UsageError(f"{path} cannot be read as safetensors: {reason}", AGAIN) from None
    promised = max((place.end for place in places.values()), default=first)
    if promised != size:
        raise UsageError(
            f"{path} is torn: it has {size:,} bytes, and its header promises {promised:,}", AGAIN
        )
    return places


def _place(path: Path, first: int, entry: Mapping[str, Any]) -> Place:
    kind, (start, end) = entry["dtype"], map(int, entry["data_offsets"])
    if kind not in DTYPES:
        raise ValueError(f"numbers in format {kind}")
    dtype, shape = DTYPES[kind], tuple(map(int, entry["shape"]))
    if end - start != math.prod(shape) * dtype.itemsize or start < 0:
        raise ValueError("a tensor has other bytes than its shape needs")
    return Place(path, first + start, first + end, dtype, shape)


def _read(name: str, place: Place, *, pinned: bool) -> Tensor:
    numbers = torch.empty(place.size, dtype=torch.uint8, pin_memory=pinned)
    try:
        with place.path.open("rb", buffering=0) as file:
            file.seek(place.start)
            bytes_of: Any = numbers.numpy()
            view, done = memoryview(bytes_of), 0
            while done < place.size:
                count = file.readinto(view[done:])
                if not count:
                    raise UsageError(f"{place.path} ends inside tensor {name}", AGAIN)
                done += count
    except OSError as error:
        raise _unreadable(place.path, error) from None
    return numbers.view(place.dtype).view(place.shape)


def _unreadable(path: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"{path} cannot be read: {error.strerror or error}",
        "see whether the disk is well; the same command goes on from here",
    )
