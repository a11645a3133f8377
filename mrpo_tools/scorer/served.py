"""A reference whose weights a server has: the `Engine` that asks it.

Every response is a request of its own with its prompt: our ids go in and their log-probs come back.
Nothing is kept before the server is calibrated, and what has come is handed on only after a line of
the calibration, asked for again, had its number: so a server that changes meanwhile is found out
before its numbers are kept.
"""

from __future__ import annotations

import itertools
import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from mrpo_tools.errors import ServerError, UsageError
from mrpo_tools.maths.noise import Apart, Noise, beyond
from mrpo_tools.references.resolved import ResolvedReference, server_of
from mrpo_tools.scorer.calibration import LINES, Calibrated, calibrate, in_words
from mrpo_tools.scorer.consistency import Line, is_logp, still_fresh
from mrpo_tools.scorer.engine import Computed, Tell, in_silence
from mrpo_tools.scorer.scorer import Route
from mrpo_tools.scorer.self_check import SINGLE, Checked
from mrpo_tools.scorer.trees import Row, branches, plan_rows
from mrpo_tools.server import Client, GaveUp, PromptLogprobs, together
from mrpo_tools.server.about import About, about

SERVED = Route("server")
CHECK_ROWS, CHECK_SECONDS = 256, 10.0
"""A line is asked for again after so many responses, or so long."""
GONE = 1
"""Attempts at that line where the server has just been given up."""
GOES_ON = "see what the server serves now; the same command goes on from here"


class ServedReference:
    """A reference behind a server, ready to compute log-probs.

    Args:
        resolved: the reference; its identity says what the server is.
        client: of the server; closed with this.
        check_rows: see `CHECK_ROWS`.
        check_seconds: see `CHECK_SECONDS`.
        clock: seconds since any moment.

    Raises:
        ServerError: it serves another model, a shorter context or another version than the identity
            says, or gives no log-probs of ids.
    """

    device, attention, packed, shares = torch.device("cpu"), "server", True, False

    def __init__(
        self,
        resolved: ResolvedReference,
        client: Client,
        *,
        check_rows: int = CHECK_ROWS,
        check_seconds: float = CHECK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.resolved, self.client, self.clock = resolved, client, clock
        self.check_rows, self.check_seconds = check_rows, check_seconds
        self.dtype: torch.dtype = getattr(torch, resolved.dtype)
        weakref.finalize(self, client.close)
        self._calibrated: Calibrated | None = None
        self._turns: Iterator[int] = itertools.count()
        served = about(client)
        _refuse_another(resolved, served, client)
        self._asked = PromptLogprobs(client, served.model)
        self._asked.settle()

    @property
    def where(self) -> str:
        """The engine; where it is is no one's business."""
        fields = self.resolved.identity.fields
        return f"{fields['engine']} {fields['engine_version']}"

    def useful_flops(self, tokens: int, targets: int) -> int:  # noqa: ARG002
        """None that are made here."""
        return 0

    def self_check(self, rows: Sequence[Row]) -> Checked:
        """Calibrate the server. See `calibrate`."""
        every = [line_of(row) for tree in rows for row in branches(tree)]
        step = max(1.0, len(every) / LINES)
        lines = [every[int(place * step)] for place in range(min(LINES, len(every)))]
        if not lines:
            return Checked(SERVED)
        concurrency = self.client.server.concurrency
        self._calibrated = calibrate(self._asked, self.resolved, lines, concurrency)
        return Checked(SERVED, self._calibrated.noise, calibration=dict(self._calibrated.about))

    def outlook(self, tokens: int) -> str | None:  # noqa: ARG002
        """How noisy its numbers are, and what they were compared with."""
        return in_words(self._calibrated.about) if self._calibrated else None

    def batches(
        self,
        trees: Sequence[Row],
        max_tokens: int | None,  # noqa: ARG002
    ) -> list[list[Row]]:
        """Each response with its prompt, longest first."""
        return [[row] for row in plan_rows(trees, share=False)]

    def computed(
        self, batches: Iterable[Sequence[Row]], _tell: Tell = in_silence
    ) -> Iterator[Computed]:
        """Batches as their numbers come; only those that a later check has vouched for.

        Raises:
            ServerError: requests came to nothing, or the server's numbers have changed. What came
                since the last check is not given then.
        """
        held: list[Computed] = []
        since = self.clock()
        try:
            for batch in together(self._logps, batches, self.client.server.concurrency):
                held += batch
                rows, waited = len(held), self.clock() - since
                if rows >= self.check_rows or waited >= self.check_seconds:
                    self._check(rows)
                    yield from held
                    held, since = [], self.clock()
        except (_Changed, GeneratorExit):
            raise
        except Exception as error:
            if held:
                self._check(len(held), GONE if isinstance(error, GaveUp) else None)
                yield from held
            raise
        if held:
            self._check(len(held))
            yield from held

    def plain_logps(self, rows: Sequence[Row]) -> list[list[float]]:
        """Log-probs of each row's responses, one request after the other.

        Raises:
            ServerError: as `computed`; of a server that is calibrated.
        """
        logps = [self._logps(branches(row)) for row in rows]
        if rows and self._calibrated is not None:
            self._check(len(rows))
        return logps

    def _logps(self, rows: Sequence[Row]) -> list[float]:
        return [self._logp(line_of(row)) for row in rows]

    def _logp(self, line: Line) -> float:
        """Of a response; not a number where one of its tokens has none."""
        values = line.of_response(self._asked.of(line.ids))
        return min(math.fsum(values), 0.0) if all(map(is_logp, values)) else math.nan

    def _check(self, held: int, attempts: int | None = None) -> None:
        """Ask for a line of the calibration again, and for one that is a little other.

        Raises:
            _Changed: it has another number, or the server is another one.
        """
        if self._calibrated is None:
            raise UsageError(
                "the server could not be calibrated: no response of the sample fits max_length",
                "a larger max_length",
            )
        try:
            sample, turn = self._calibrated.sample, next(self._turns)
            place = turn % len(sample.lines)
            line, known = sample.lines[place], sample.values[place]
            if attempts is None:
                _refuse_another(self.resolved, about(self.client), self.client)
            again = self._asked.of(line.ids, attempts)
            noise = Noise(rms=max(sample.rms, self._calibrated.noise.rms))
            reason = _other(line, known, again, noise)
            if reason is None and attempts is None:
                reason = still_fresh(self._asked, sample, turn)
        except ServerError as error:
            raise _Changed(f"{error.what}; {_dropped(held)}", error.hint) from None
        if reason is not None:
            what = (
                f"the server's numbers of {self.resolved.name!r} have changed meanwhile: {reason}"
            )
            raise _Changed(f"{what}; {_dropped(held)}", GOES_ON)


class _Changed(ServerError):
    """What came since the last check is not vouched for."""


def load_served(resolved: ResolvedReference) -> ServedReference:
    """The server of a reference, ready to be asked.

    Raises:
        ServerError: see `ServedReference`.
        UsageError: the extra `server` is not installed, or the URL cannot be meant.
    """
    return ServedReference(resolved, Client(server_of(resolved.reference)))


def line_of(row: Row) -> Line:
    """A row of one response."""
    [response] = row.responses
    return Line((*row.prompt, *response), len(row.prompt))


def _refuse_another(resolved: ResolvedReference, served: About, client: Client) -> None:
    """Refuse a server that is not what the identity says, or cannot take the longest line."""
    fields, base = resolved.identity.fields, client.server.base
    if served.model != fields["served_model"] or served.version != fields["engine_version"]:
        raise ServerError(
            f"{base} serves {served.model} by vLLM {served.version} now, and the numbers of "
            f"reference {resolved.name!r} are {fields['served_model']}'s by vLLM "
            f"{fields['engine_version']}",
            "mrpo precompute again computes those of the server as it is",
        )
    hub_id = resolved.files.hub_id
    if hub_id and resolved.files.adapter is None and _is_another(hub_id, served.root):
        raise ServerError(
            f"{base} serves {served.root}, and reference {resolved.name!r} is {hub_id}",
            "name the model that is served, or serve the one that is named",
        )
    longest = fields["max_length"]
    if longest is not None and served.context is not None and longest >= served.context:
        raise ServerError(
            f"{base} takes {served.context:,} tokens with the one that it generates, and "
            f"max_length of reference {resolved.name!r} is {longest:,}",
            f"max_length: {served.context - 1} for this reference, or start the server with "
            f"--max-model-len {longest + 1}",
        )


def _is_another(hub_id: str, root: str | None) -> bool:
    """Whether what a server has its model from is a hub id too, and not this one."""
    looks = root is not None and root.count("/") == 1 and not root.startswith((".", "/", "~"))
    return looks and root != hub_id


def _other(line: Line, known: Sequence[float], again: Sequence[float], noise: Noise) -> str | None:
    """Why a line's numbers are others than noise explains; of all its tokens."""
    if not all(map(is_logp, again)):
        return "a line of the calibration has no log-probs"
    difference = math.fsum(again) - math.fsum(known)
    return beyond([Apart(difference, len(line.ids) - 1)], noise, SINGLE)


def _dropped(held: int) -> str:
    return f"the {held:,} that came since the last check are not kept"
