"""References larger than memory: one layer is there at a time, and all rows pass through it.

A *sweep* is some batches and one reading of the weights. Every batch goes through the first layer,
then every batch through the second, and so on; meanwhile the next layer is read in a thread. So the
reading takes no time where a layer computes for as long as the next one is read, and a sweep has as
many tokens as that takes (`pace.Pace`).

The numbers are those of the ordinary route: the model's own `forward` runs for every batch and
layer, and only the layer whose turn it is computes (`layers.Layered`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from mrpo_tools.references.resolved import ResolvedReference
from mrpo_tools.scorer.engine import Computed, Tell, in_silence
from mrpo_tools.scorer.here import ScorerEngine
from mrpo_tools.scorer.layers import ELSEWHERE, Layered, refused
from mrpo_tools.scorer.pace import Pace
from mrpo_tools.scorer.prefetch import ahead
from mrpo_tools.scorer.scorer import ResponseScorer, logp_pass
from mrpo_tools.scorer.self_check import Checked, plain_logps, self_check
from mrpo_tools.scorer.states import States
from mrpo_tools.scorer.trees import Row

ResultT = TypeVar("ResultT")


class StreamedReference(ScorerEngine):
    """An `Engine` of a model whose layers are read from disk for every sweep.

    Args:
        resolved: the reference.
        products: dtype of products.
        device: where layers compute.
        sweep_tokens: of a sweep; None takes what hides the reading.
        batch_tokens: of a batch, where it is not what suits the device.
        room: bytes for hidden states, see `States`.

    Raises:
        ResourceError: the ends and two layers do not fit into memory.
        UsageError: see `Layered`.
    """

    def __init__(
        self,
        resolved: ResolvedReference,
        products: str,
        device: torch.device,
        sweep_tokens: int | None = None,
        batch_tokens: int | None = None,
        room: Mapping[str, float] | None = None,
    ) -> None:
        self.device, self.batch_tokens, self._room = device, batch_tokens, room
        self.layered = Layered(resolved, products, device)
        self.scorer = ResponseScorer(
            self.layered.skeleton, resolved.reference.attention, getattr(torch, products)
        )
        self.layered.on_enter(self._enter)
        self.pace = Pace(sum(self.layered.layer_bytes), sweep_tokens)
        self._turn: _Turn | None = None
        self._beside: tuple[Any, ...] | None = None
        self._tell: Tell = in_silence
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def where(self) -> str:
        """The device, and how the model comes to it."""
        return f"{self.device}, a layer at a time"

    def self_check(self, rows: Sequence[Row]) -> Checked:
        """Take the fastest exact route; some sweeps of a few rows."""
        try:
            return self_check(self.scorer, rows, self.device, run=self.run)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # of a route it would be no news; the model's own way lacks what other layers leave
            raise self._refused(f"a layer cannot compute alone ({error!r})") from None

    def outlook(self, tokens: int) -> str | None:
        """Passes, bytes and hours, at the speeds of the sweeps so far."""
        return f"a layer at a time: about {self.pace.plan(tokens)}"

    def computed(
        self, batches: Iterable[Sequence[Row]], tell: Tell = in_silence
    ) -> Iterator[Computed]:
        """Every batch with its log-probs, a sweep at a time."""
        self._tell = tell
        for sweep in self.pace.sweeps(batches):
            passes = [logp_pass(self.scorer, batch, self.device) for batch in sweep]
            yield from zip(sweep, self.run(passes), strict=True)

    def plain_logps(self, rows: Sequence[Row]) -> list[list[float]]:
        """The same of each row, by the shortest way there is."""
        return plain_logps(self.scorer, rows, self.device, self.run)

    def run(self, passes: Sequence[Callable[[], ResultT]]) -> list[ResultT]:
        """Make passes through the model, all of them in one sweep; without any, nothing is read."""
        if not passes:
            return []
        count, computing = self.layered.count, 0.0
        kept = States(len(passes), self.device, self._room)
        for place, made in enumerate(ahead(self._load, range(count), depth=1)):
            self._make_ready(made)
            started = time.monotonic()
            for number, begin in enumerate(passes):
                self._begin(begin, place, made, kept, number)
            if self._copies is not None:
                torch.cuda.synchronize(self.device)
            computing += time.monotonic() - started
            self._tell(f"{kept.tokens:,} tokens at layer {place + 1} of {count}")
            del made  # before the next one is asked for: two are in memory, and no third
        self.pace.has_computed(kept.tokens, computing)
        results = []
        for number, begin in enumerate(passes):
            self._turn = _Turn(count, None, kept, number)
            results.append(begin())
            self._ended()
            kept.forget(number)
        return results

    def _begin(
        self, begin: Callable[[], Any], place: int, made: Any, kept: States, number: int
    ) -> None:
        """Bring a pass through one layer."""
        self._turn = _Turn(place, self.layered.layer_of(made), kept, number)
        try:
            begin()
        except _Through:
            return
        finally:
            self._turn = None
        raise self._refused(f"its layer {place} is never entered")

    def _ended(self) -> None:
        turn, self._turn = self._turn, None
        if turn is None or turn.entered != self.layered.count:
            raise self._refused("its layers are not entered one after the other")

    def _enter(
        self, place: int, states: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What the decoder gets for the output of a layer; see `layers.Enter`."""
        turn = self._turn
        if turn is None:
            raise RuntimeError("a pass outside of a sweep")
        if place != turn.entered or (place and states is not turn.passed):
            raise self._refused("its layers do not take each other's hidden states as they are")
        turn.entered, turn.passed = place + 1, states
        if turn.place == self.layered.count and place == turn.place - 1:
            states = turn.passed = turn.kept.of(turn.number)
        if place < turn.place:
            return states if self._beside is None else (states, *self._beside)
        if place:
            states = turn.kept.of(turn.number)
        before = _contents(kwargs)
        output, self._beside = _apart(turn.layer(states, *args, **kwargs))
        if self._beside and any(each is not None for each in self._beside):
            raise self._refused("its layers give more than hidden states")
        if output.shape != states.shape:
            raise self._refused("its layers give hidden states of another shape")
        if _contents(kwargs) != before:
            raise self._refused("its layers hand each other more than hidden states")
        turn.kept.keep(turn.number, output)
        raise _Through

    def _load(self, place: int) -> Any:
        """A model of one layer; in a thread, while the one before computes."""
        started = time.monotonic()
        tensors = self.layered.read(place)
        with torch.cuda.stream(self._copies):
            if self._copies is not None:  # transformers' own threads would copy in another stream
                tensors = {
                    name: value.to(self.device, non_blocking=True)
                    for name, value in tensors.items()
                }
                self._copies.synchronize()
            made = self.layered.made(place, tensors)
        if self._copies is not None:
            torch.cuda.synchronize(self.device)  # those threads may have cast what goes now
        self.pace.has_read(self.layered.layer_bytes[place], time.monotonic() - started)
        return made

    def _make_ready(self, made: Any) -> None:
        """Have this thread see what another has loaded, by the attention of the route."""
        if self._copies is not None:
            here = torch.cuda.current_stream(self.device)
            here.wait_stream(self._copies)
            for weights in (*made.parameters(), *made.buffers()):
                weights.record_stream(here)
        made.set_attn_implementation(self.scorer.attention)

    def _refused(self, reason: str) -> Exception:
        return refused(self.layered.resolved.reference.model, reason, ELSEWHERE)


class _Through(Exception):
    """A pass has gone through the layer whose turn it is."""


class _Turn:
    """Where a pass is.

    Args:
        place: of the layer that computes; their number at the end, when none does.
        layer: that computes; None at the end.
        kept: hidden states of every pass.
        number: of the pass.

    Attributes:
        entered: layers that the decoder has entered.
        passed: what the last one gave it.
    """

    def __init__(self, place: int, layer: Any, kept: States, number: int) -> None:
        self.place, self.layer, self.kept, self.number = place, layer, kept, number
        self.entered = 0
        self.passed: Tensor | None = None


def _apart(output: Any) -> tuple[Tensor, tuple[Any, ...] | None]:
    """The hidden states that a layer gives, and what it gives beside them: nothing at all, or the
    rest of a tuple."""
    return (output, None) if isinstance(output, Tensor) else (output[0], tuple(output[1:]))


def _contents(kwargs: dict[str, Any]) -> dict[str, list[int]]:
    """What lies in the containers that a layer is handed, by identity."""
    return {
        name: [id(item) for item in (value.values() if isinstance(value, dict) else value)]
        for name, value in kwargs.items()
        if isinstance(value, dict | list)
    }
