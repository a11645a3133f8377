"""The log-probs of one identity of one reference."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from mrpo_tools.cache import files
from mrpo_tools.cache.numbers import COLUMNS, Numbers
from mrpo_tools.cache.parts import LOGPS, Row
from mrpo_tools.cache.store_of_parts import PartStore
from mrpo_tools.config import Reference
from mrpo_tools.errors import UsageError
from mrpo_tools.groups.facts import Keys, count_distinct, find
from mrpo_tools.maths.noise import Apart, Noise, allowed, beyond, least_noise, loudest


class ReferenceStore(PartStore):
    """The log-probs of one identity of one reference, a row per response."""

    kind = LOGPS
    whose = "reference"

    def numbers_of(self, keys: Keys) -> Numbers:
        """The rows of some responses, in their order.

        Args:
            keys: [R, 2] of the responses.

        Raises:
            CacheMissing: some have none; names the count and the command.
        """
        parts = self.of_parts(lambda part: Numbers.of(part.table), COLUMNS)
        numbers = Numbers.together(parts)
        del parts
        places = find(keys, numbers.keys)
        absent = places < 0
        if absent.any():
            self.refuse_lack(count_distinct(keys[absent]), count_distinct(keys))
        return numbers.at(places)

    def noise(self) -> Noise:
        """The largest noise that a writer measured, and no less than these products have; none
        where no writer did."""
        fields = self.identity.fields
        products = fields.get("autocast") or fields.get("dtype")
        return loudest([least_noise(products), *(record.noise for record in self.recorded())])

    def recorded_reference(self) -> Reference:
        """The words under which the latest part was computed: where the model is, among others.

        Raises:
            UsageError: nothing was computed here; the numbers were imported.
        """
        words = [record.reference for record in self.recorded() if record.reference is not None]
        if not words:
            raise UsageError(
                f"the cache does not say where the model of reference {self.name!r} is",
                f"--ref {self.name}=PATH_OR_HUB_ID, or, to start from another one, --policy MODEL",
            )
        return Reference.model_validate(words[-1])

    def apart(self, pairs: Sequence[tuple[Row, Row]]) -> list[float]:
        """As any store has it; where no pair is too far apart and all together lean to one side,
        the farthest counts as a fault."""
        noise, sizes, distances = self.noise(), [], []
        for first, other in pairs:
            size = 0.0
            if first["logp"] is not None and other["logp"] is not None:
                distance = Apart(other["logp"] - first["logp"], first["num_tokens"])
                distances.append(distance)
                size = abs(distance.nats) / allowed(distance.tokens, noise)
            sizes.append(size)
        if distances and max(sizes) <= 1 and beyond(distances, noise) is not None:
            sizes[sizes.index(max(sizes))] = 1.0 + max(sizes)
        return sizes

    def _way_to_more(self) -> str:
        option = files.cache_option(self.cache_path)
        origin = self.identity.fields.get("origin")
        if origin is None:
            return f"create them with: mrpo precompute --ref {self.name}{option}"
        return (
            f"they come from {origin}: mrpo cache import FILE --ref {self.name} "
            f"--origin {shlex.quote(str(origin))}{option}"
        )
