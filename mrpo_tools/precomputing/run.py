"""What is missing -> ids -> one model's log-probs -> parts. The model is loaded here and freed.

Numbers that cannot be log-probs are computed again alone and in float32, with the first model out
of memory; what stays bad is stored as `nonfinite`.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import NamedTuple

from mrpo_tools.cache import LogpRow, PartWriter, ReferenceStore, WriterRecord
from mrpo_tools.cache.parts import PART_ROWS
from mrpo_tools.config import absolute_paths
from mrpo_tools.groups import Group
from mrpo_tools.precomputing.encoded import (
    EncodedPrompt,
    Place,
    encode,
    places_of,
    text_bytes,
    trees_of,
)
from mrpo_tools.precomputing.meter import Meter
from mrpo_tools.precomputing.summary import Summary
from mrpo_tools.precomputing.taking_over import Others
from mrpo_tools.progress import bar, say
from mrpo_tools.references.devices import (
    free_memory,
    memory_errors,
    peak_memory_bytes,
    pick_device,
    reset_peak_memory,
)
from mrpo_tools.references.model_files import sliding_window
from mrpo_tools.references.resolved import ResolvedReference, renderer_of
from mrpo_tools.scorer.choose import load_engine
from mrpo_tools.scorer.engine import Engine, LoadReference
from mrpo_tools.scorer.prefetch import ahead
from mrpo_tools.scorer.self_check import Checked, check_sample
from mrpo_tools.scorer.trees import Row

WINDOW = 512
"""Prompts that are tokenised and ordered by length together."""
CHECKED_BYTES = 2000
"""Groups with more text than this take no part in the self-check, but for a window's sake."""
CHECKED_GROUPS = {True: 3, False: 8}
"""Of each kind, in float32 and in 16 bits, where noise must be told from a fault."""
CALIBRATED_GROUPS, CALIBRATED_BYTES = 32, 20_000
"""Of each kind, and how long, where a server is asked: some 64 responses and more."""
SERVED_ROWS, SERVED_SECONDS = 256, 10.0
"""What a kill may lose of a server's numbers that were handed on, at most."""
TOKEN_BYTES = 6
"""No fewer than a token of text has, on average."""


def compute_missing(
    resolved: ResolvedReference,
    store: ReferenceStore,
    groups: Sequence[Group],
    *,
    load: LoadReference = load_engine,
    part_rows: int = PART_ROWS,
    others: Others | None = None,
) -> Summary:
    """Compute the log-prob of every response of `groups`, and store it.

    Tokenising, computing and writing overlap: the next prompts are tokenised in one thread and the
    last parts written in another while the model computes. The longest prompts come first.

    Args:
        resolved: the reference.
        store: of its identity.
        groups: prompts with the responses that have no number yet.
        load: gives the model; called again for float32 where numbers are no log-probs.
        part_rows: rows of a part.
        others: that fill the store as well: what they have written is left out, and what they have
            not is computed after `groups`.

    Returns:
        What was computed; `reused` and `seconds` are the caller's to know.

    Raises:
        ResourceError: out of memory or disk; what was computed so far is kept.
        UsageError: the template cannot render a group; what was computed so far is kept.
    """
    device = pick_device()
    reset_peak_memory(device)
    with memory_errors(
        f"computing log-probs of reference {resolved.name!r}",
        "lower `batch_tokens`, set `quantization: nf4` for this reference, or let it take more "
        "GPUs: `device_map: auto`",
    ):
        summary = _compute(
            resolved=resolved,
            store=store,
            groups=sorted(groups, key=text_bytes, reverse=True),
            load=lambda dtype: load(resolved, dtype, device),
            part_rows=part_rows,
            others=others,
        )
    return replace(summary, peak_bytes=peak_memory_bytes(device))


def is_log_prob(value: float) -> bool:
    """Whether a number can be the log of a probability."""
    return math.isfinite(value) and value <= 0


class _CountedRows:
    """Rows on their way to a writer, counted by status."""

    def __init__(self, writer: PartWriter, others: Others | None) -> None:
        self.writer, self.others = writer, others
        self.counts: Counter[str] = Counter()
        self.cut = self.taken_over = 0

    def add(self, rows: Sequence[LogpRow]) -> None:
        self.writer.add(rows)
        self.counts.update(row.status for row in rows)
        self.cut += sum(row.truncated for row in rows)
        if self.others is not None:
            foreign = sum(self.others.foreign(row.prompt_id) for row in rows)
            self.taken_over += foreign
            if self.others.should_see(len(rows) - foreign):
                self.writer.flush()


class _Pass(NamedTuple):
    """All batches of a model: tokens and padding computed, and whose numbers are no log-probs."""

    tokens: int
    padding: int
    bad: list[Place]


def _compute(
    *,
    resolved: ResolvedReference,
    store: ReferenceStore,
    groups: Sequence[Group],
    load: Callable[[str], Engine],
    part_rows: int,
    others: Others | None,
) -> Summary:
    started = time.time()
    encoder = partial(encode, renderer_of(resolved))
    chosen = _check_sample(groups, resolved)
    sample = trees_of(encoder(chosen))
    windows = [groups[start : start + WINDOW] for start in range(0, len(groups), WINDOW)]
    encoded = ahead(encoder, windows)
    model = load(resolved.products)
    checked = model.self_check(sample)
    _tell_outlook(model, resolved.name, sample, chosen, groups)
    record = _record(model, resolved, checked, started)
    with _writer(store, record, resolved, part_rows) as writer:
        rows = _CountedRows(writer, others)
        if others is not None:
            encoded = map(others.fresh, chain(encoded, map(encoder, others.blocks(writer.flush))))
        done = _all_batches(model, resolved, groups, windows=encoded, rows=rows, others=others)
        if done.bad and resolved.products != "float32" and resolved.reference.server is None:
            writer.flush()
            del model
            free_memory()
            model = load("float32")
        _alone(model, done.bad, rows)
    return Summary(
        store,
        computed=rows.counts,
        taken_over=rows.taken_over,
        tokens=done.tokens,
        padding=done.padding,
        warnings=_warnings(resolved, rows, bad=len(done.bad), slower=checked.slower),
    )


def _tell_outlook(
    model: Engine,
    name: str,
    sample: Sequence[Row],
    chosen: Sequence[Group],
    groups: Sequence[Group],
) -> None:
    """What to expect of the run, by the tokens that a byte of the sample has."""
    share = sum(map(text_bytes, chosen)) / sum(map(text_bytes, groups))
    if outlook := model.outlook(round(sum(map(len, sample)) / share)):
        say(f"{name}: {outlook}")


def _writer(
    store: ReferenceStore, record: WriterRecord, resolved: ResolvedReference, part_rows: int
) -> PartWriter:
    """Of a server's numbers a kill loses few: they are paid for."""
    if resolved.reference.server is None:
        return PartWriter(store, record, rows=part_rows)
    return PartWriter(store, record, rows=min(part_rows, SERVED_ROWS), seconds=SERVED_SECONDS)


def _record(
    model: Engine, resolved: ResolvedReference, checked: Checked, started: float
) -> WriterRecord:
    """What the parts say of this run."""
    return WriterRecord(
        reference=absolute_paths(resolved.reference).model_dump(mode="json"),
        device=model.where,
        attention=model.attention,
        dtype=resolved.dtype,
        route=checked.route.name,
        refused=checked.refused,
        noise=checked.noise,
        calibration=checked.calibration,
        started=started,
    )


def _all_batches(
    model: Engine,
    resolved: ResolvedReference,
    groups: Sequence[Group],
    *,
    windows: Iterable[list[EncodedPrompt]],
    rows: _CountedRows,
    others: Others | None,
) -> _Pass:
    """Write what is overlong and what is a log-prob."""
    bad: list[Place] = []
    waiting: dict[int, Place] = {}
    meter, total = Meter(model), sum(map(text_bytes, groups))
    with bar(f"log-probs of {resolved.name}", total / 1000, "kB of text") as advance:

        def planned() -> Iterator[list[Row]]:
            first = 0
            for window in windows:
                trees = trees_of(window, first)
                places = dict(enumerate(places_of(window), first))
                first += len(places)
                overlong = [place for place in places.values() if place.response.overlong]
                rows.add([place.row(None, "overlong") for place in overlong])
                advance(sum(place.text_bytes for place in overlong) / 1000)
                batches = model.batches(trees, resolved.reference.batch_tokens)
                for batch in batches if others is None else others.unwritten(batches, places):
                    waiting.update((key, places[key]) for row in batch for key in row.keys)
                    yield batch

        for batch, logps in model.computed(planned(), lambda note: advance(0, note=note)):
            computed = [waiting.pop(key) for row in batch for key in row.keys]
            pairs = list(zip(computed, logps, strict=True))
            rows.add([place.row(logp, "ok") for place, logp in pairs if is_log_prob(logp)])
            bad += [place for place, logp in pairs if not is_log_prob(logp)]
            meter.add(batch)
            advance(sum(place.text_bytes for place in computed) / 1000, note=meter.note)
    return _Pass(meter.tokens, meter.padding, bad)


def _alone(model: Engine, bad: Sequence[Place], rows: _CountedRows) -> None:
    """Write bad numbers computed once more, one row at a time; bad ones are `nonfinite` then."""
    plain = model.plain_logps([place.alone() for place in bad])
    for place, [logp] in zip(bad, plain, strict=True):
        good = is_log_prob(logp)
        rows.add([place.row(logp, "ok") if good else place.row(None, "nonfinite")])


def _warnings(
    resolved: ResolvedReference, rows: _CountedRows, *, bad: int, slower: str | None
) -> tuple[str, ...]:
    """What the user should know, in words."""
    name, counts, warnings = resolved.name, rows.counts, []
    if slower:
        warnings.append(f"{name}: {slower}")
    if bad:
        again = "computed again alone in float32"
        if resolved.reference.server is not None:
            again = "asked for again alone"
        warnings.append(
            f"{name}: {bad:,} numbers were no log-probs; {again}, {counts['nonfinite']:,} still "
            "have no finite log-prob; these are stored as nonfinite and never used"
        )
    if counts["overlong"]:
        warnings.append(
            f"{counts['overlong']:,} responses do not fit max_length; they are stored as "
            "overlong (set `overlong: truncate` or `keep_end`, or a larger max_length)"
        )
    if rows.cut:
        what = "a prompt" if resolved.reference.overlong == "keep_end" else "an end"
        warnings.append(
            f"{name}: {rows.cut:,} responses have {what} that was cut; they are marked, and take "
            "part where a recipe says `truncated: keep`"
        )
    return tuple(warnings)


def _check_sample(groups: Sequence[Group], resolved: ResolvedReference) -> list[Group]:
    """The groups that the self-check sees."""
    window = sliding_window(resolved.files.model)
    served = resolved.reference.server is not None
    return check_sample(
        groups,
        size=text_bytes,
        responses=lambda group: len(group.responses),
        count=CALIBRATED_GROUPS if served else CHECKED_GROUPS[resolved.products == "float32"],
        quick=CALIBRATED_BYTES if served else CHECKED_BYTES,
        window=window and window * TOKEN_BYTES,
    )
