"""The scores of one identity of one scorer."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from mrpo_tools.cache import files
from mrpo_tools.cache.parts import SCORES, Row
from mrpo_tools.cache.store_of_parts import PartStore
from mrpo_tools.errors import UsageError
from mrpo_tools.maths.noise import RESPONSE, least_noise

EXACT_SCORE = 1e-5
"""By which a score in float32 may differ from the same computed alone: of 1, or of the score."""


class StoredScores(NamedTuple):
    """Columns of rows: `score` is None unless `status` is `ok`."""

    score: list[float | None]
    status: list[str]
    reason: list[str | None]


class ScoreStore(PartStore):
    """The scores of one identity of one scorer, a row per response."""

    kind = SCORES
    whose = "scorer"

    def scores_of(self, keys: Sequence[str]) -> StoredScores:
        """The scores of some responses, in their order.

        Raises:
            CacheMissing: some have no row; names the count and the command.
        """
        rows = self.rows_of(pa.array(keys, pa.string()))
        return StoredScores(*(rows[name].to_pylist() for name in StoredScores._fields))

    def recorded_scorer(self) -> Mapping[str, Any]:
        """The words under which the latest part was computed, as a project's `scorers:` has them.

        Raises:
            UsageError: no part says them.
        """
        words = [record.scorer for record in self.recorded() if record.scorer is not None]
        if not words:
            raise UsageError(
                f"the cache does not say what scorer {self.name!r} is",
                f"mrpo score --reward-model {self.name}=MODEL, --rule MODULE:FUNCTION, or "
                "--judge URL#MODEL",
            )
        return words[-1]

    def apart(self, pairs: Sequence[tuple[Row, Row]]) -> list[float]:
        """As any store has it, by the largest noise that a writer measured, and no less than
        products in this format have."""
        rounding = RESPONSE * least_noise(self.identity.fields.get("dtype")).rms
        measured = RESPONSE * max((each.noise.rms for each in self.recorded()), default=0.0)
        sizes = []
        for first, other in pairs:
            mine, theirs = first["score"], other["score"]
            nearest = max(EXACT_SCORE, rounding) * max(1.0, abs(mine or 0.0))
            distance = 0.0 if mine is None or theirs is None else abs(mine - theirs)
            sizes.append(distance / max(nearest, measured))
        return sizes

    def _way_to_more(self) -> str:
        return f"mrpo score{self._asked()}{files.cache_option(self.cache_path)}"

    def _asked(self) -> str:
        """The options that name this scorer."""
        words = next((each.scorer for each in self.recorded()[::-1] if each.scorer), {})
        if "rule" in words:
            return f" --rule {shlex.quote(str(words['rule']))} --name {self.name}"
        if "judge" in words:
            return f" --judge {shlex.quote(str(words['judge']))} --name {self.name}"
        return f" --reward-model {self.name}"
