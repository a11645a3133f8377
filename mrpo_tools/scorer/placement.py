"""Where a reference is computed: on one device, across several, a layer at a time, or by a server.
Arithmetic alone.

A model whose layers lie on several cards computes them one after the other, so it is no faster than
on one card that holds it: fewer are better, and the cards that are left can take other rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from mrpo_tools.errors import ResourceError

ROOM, MOST_ROOM = 0.05, 3 * 10**9
"""Of a device's free memory that is left, and bytes of it at most: what kernels take for
themselves, and the gaps between blocks of an allocator that gives out 2 MiB at a time."""
STEP = 2**20
"""Bytes to which shares are balanced."""
UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}

DeviceMap = Mapping[str, int | str]
"""Name of a module -> number of a card, or `cpu`: what `from_pretrained` takes as `device_map`."""


class Block(NamedTuple):
    """Modules that lie on one device: a layer, or the embeddings with the head that is tied to
    them.

    Attributes:
        names: of the modules.
        size: bytes of their parameters and buffers.
    """

    names: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class Need:
    """What a model takes.

    Attributes:
        blocks: in the order in which they are computed.
        working: (tokens of a batch, bytes that it takes beside the weights on any device), what is
            wanted first; smaller batches follow.
    """

    blocks: tuple[Block, ...]
    working: tuple[tuple[int, int], ...]

    @property
    def weights(self) -> int:
        """Bytes of all blocks."""
        return sum(block.size for block in self.blocks)


class Share(NamedTuple):
    """Of a device: the number of a card or `cpu`; bytes of weights on it; bytes free before."""

    device: int | str
    weights: int
    free: int


Kind = Literal["one", "across", "layers", "server", "too large"]


@dataclass(frozen=True)
class Placement:
    """Where a model goes.

    Attributes:
        kind: `one` device, `across` several, `layers` that are on one device in turn, a `server`'s,
            or `too large` for all devices together.
        batch_tokens: of a batch that fits beside the weights; None where nothing was reckoned.
        shares: of each device that is used; of those that were asked where it is too large.
        device_map: of a model that lies across several; None otherwise.
        working: bytes of such a batch.
        weights: bytes of the model.
        processes: of this machine, each with a device of its own.
    """

    kind: Kind
    batch_tokens: int | None = None
    shares: tuple[Share, ...] = ()
    device_map: DeviceMap | None = None
    working: int = 0
    weights: int = 0
    processes: int = 1

    @property
    def cards(self) -> int:
        """GPUs that are used, where the model lies across some."""
        return sum(share.device != "cpu" for share in self.shares)

    @property
    def told(self) -> str:
        """What a user should know of a model that lies across several devices."""
        over = f"{self.cards} GPUs" if self.cards > 1 else "a GPU"
        beside = " and the memory of the machine" if len(self.shares) > self.cards else ""
        slow = "; the layers there visit the GPU in every batch, which is slow" if beside else ""
        return (
            f"{self.weights / 1e9:.1f} GB of weights over {over}{beside}, one layer after the "
            f"other ({self.words}); batches of {self.batch_tokens or 0:,} tokens{slow}"
        )

    @property
    def words(self) -> str:
        """What each device holds: `GPU 0 70.9 of 84.5 GB free, GPU 1 …`."""
        return ", ".join(
            f"{_named(share.device)} {share.weights / 1e9:.1f} of {share.free / 1e9:.1f} GB free"
            for share in self.shares
        )


def placement(
    need: Need,
    free: Sequence[int],
    *,
    asked: bool = False,
    limits: Mapping[int | str, int] | None = None,
) -> Placement:
    """Where a model goes: one device where it fits, else the fewest that hold it.

    Smaller batches are tried on one device before several are, for they cost little time, and on
    several before it is called too large.

    Args:
        need: of the model.
        free: bytes of each device that may be used, the first one first.
        asked: `device_map: auto`: all devices, however few would do.
        limits: bytes of weights for each card, taken as they are said, and for the `cpu`, whose
            layers visit the first card in every batch; only these are used. None has no limits, and
            leaves the CPU alone.
    """
    if not asked:
        for tokens, working in need.working:
            if need.weights <= room_for_weights(free[0], working):
                share = Share(0, need.weights, free[0])
                return Placement("one", tokens, (share,), None, working, need.weights)
    for tokens, working in need.working:
        rooms = [room_for_weights(size, working) for size in free]
        places = _across(need, rooms, limits) if asked else _fewest(need, rooms)
        if places is not None:
            shares = _shares(need, places, {**dict(enumerate(free)), **_of_cpu(limits)})
            if set(places) == {0}:
                return Placement("one", tokens, shares, None, working, need.weights)
            return Placement("across", tokens, shares, _map(need, places), working, need.weights)
    tokens, working = need.working[-1]
    shares = tuple(Share(card, 0, size) for card, size in enumerate(free))
    return Placement("too large", tokens, shares, None, working, need.weights)


def bytes_of(size: int | str) -> int:
    """`40GiB` -> 42949672960, and `40GB` -> 40000000000, as accelerate reads them."""
    if isinstance(size, int):
        return size
    unit = size.strip("0123456789.").removesuffix("B")
    return int(float(size.removesuffix(f"{unit}B")) * UNITS[unit])


def too_large(name: str, placed: Placement) -> ResourceError:
    """The error for a model that no device here holds, nor all together.

    Args:
        name: of the reference.
        placed: as `placement` found it.
    """
    return ResourceError(
        why_too_large(name, placed),
        "quantization: nf4; more GPUs, over which device_map: auto spreads it; a layer at a time "
        "(--stream-layers); or a server: docs/large_references.md",
    )


def why_too_large(name: str, placed: Placement) -> str:
    """What a model takes, and what there is."""
    where = f"{placed.cards} GPUs together" if placed.cards > 1 else "a GPU"
    if not placed.cards:
        where = "this machine"
    free = ", ".join(f"{share.free / 1e9:.1f}" for share in placed.shares)
    others = "" if placed.processes == 1 else (
        f"; each of {placed.processes} processes has one, and a process that is started without "
        "torchrun may take all of them"
    )  # fmt: skip
    return (
        f"reference {name!r} takes {placed.weights / 1e9:.1f} GB of weights and "
        f"{placed.working / 1e9:.1f} GB for a batch of {placed.batch_tokens or 0:,} tokens, more "
        f"than {where} can give ({free} GB free){others}"
    )


def spread(sizes: Sequence[int], rooms: Sequence[int]) -> list[int] | None:
    """The place of each block, in order, so that the fullest place is as empty as can be.

    Args:
        sizes: of the blocks.
        rooms: of the places.

    Returns:
        Indices that never fall; None where the blocks do not fit.
    """
    low, high = 0, max(rooms, default=0)
    best = _filled(sizes, rooms, high)
    while best is not None and high - low > STEP:
        middle = (low + high) // 2
        places = _filled(sizes, rooms, middle)
        low, high = (middle, high) if places is None else (low, middle)
        best = places or best
    return best


def _filled(sizes: Sequence[int], rooms: Sequence[int], level: int) -> list[int] | None:
    """Each block in the first place that has room, no place fuller than a level."""
    places, place, used = [], 0, 0
    for size in sizes:
        while place < len(rooms) and used + size > min(level, rooms[place]):
            place, used = place + 1, 0
        if place == len(rooms):
            return None
        places.append(place)
        used += size
    return places


def _fewest(need: Need, rooms: Sequence[int]) -> list[int | str] | None:
    sizes = [block.size for block in need.blocks]
    for count in range(2, len(rooms) + 1):
        places = spread(sizes, rooms[:count])
        if places is not None:
            return list(places)
    return None


def _across(
    need: Need, rooms: Sequence[int], limits: Mapping[int | str, int] | None
) -> list[int | str] | None:
    """Over all cards, or as a user limits them; over the memory of the machine where it is named
    and they are full."""
    sizes = [block.size for block in need.blocks]
    if limits is None:
        return _as_they_are(spread(sizes, rooms))
    cards = [card for card in range(len(rooms)) if card in limits]
    limited = [limits[card] for card in cards]
    names: list[int | str] = [*cards, "cpu"]
    places = spread(sizes, limited)
    if places is None and "cpu" in limits and limited:
        limited[0] -= max(sizes)  # where a layer of the machine's memory is computed
        full = [*limited, limits["cpu"]]
        places = _filled(sizes, full, max(full))
        if places and places[0] != 0:  # they would visit another card, or none
            return None
    return None if places is None else [names[place] for place in places]


def _as_they_are(places: list[int] | None) -> list[int | str] | None:
    return None if places is None else list(places)


def _of_cpu(limits: Mapping[int | str, int] | None) -> dict[int | str, int]:
    return {"cpu": limits["cpu"]} if limits and "cpu" in limits else {}


def _shares(
    need: Need, places: Sequence[int | str], free: Mapping[int | str, int]
) -> tuple[Share, ...]:
    held: dict[int | str, int] = {}
    for block, place in zip(need.blocks, places, strict=True):
        held[place] = held.get(place, 0) + block.size
    return tuple(Share(place, size, free[place]) for place, size in held.items())


def _map(need: Need, places: Sequence[int | str]) -> DeviceMap:
    return {
        name: place
        for block, place in zip(need.blocks, places, strict=True)
        for name in block.names
    }


def room_for_weights(free: int, working: int) -> int:
    """Bytes for weights on a device that has so many free, beside what a batch takes."""
    return free - min(int(free * ROOM), MOST_ROOM) - working


def _named(device: int | str) -> str:
    return "the CPU" if device == "cpu" else f"GPU {device}"
