"""What the writer of a part records of itself, in the part's footer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from mrpo_tools.maths.noise import Noise

RECORD_VERSION = 2
"""Records of version 0 do not say their version. Before 2 the noise was one number."""
NOISE_BEFORE_2 = 4.0
"""Times what older records say: the largest mean difference of a short response, not a token's."""


@dataclass(frozen=True)
class ImportedFile:
    """The file of another program that numbers came from.

    Attributes:
        origin: who computed them, in words.
        file: its name.
        sha256: of its bytes.
    """

    origin: str
    file: str
    sha256: str


@dataclass(frozen=True)
class WriterRecord:
    """Who computed the numbers of a part, with what. No identity: that is the store's.

    Attributes:
        reference: the words under which the model was loaded, as `Reference` takes them: where it
            lies, among others; None for imported numbers and for scores.
        scorer: the words of a scorer, as a project's `scorers:` has them; None for log-probs.
        device: the numbers were computed on.
        attention: the kernel that computed them.
        dtype: of the weights.
        route: how rows were computed (`Route.name` of the scorer).
        refused: why faster routes were not taken, by name.
        noise: of the numbers, measured on a sample of rows against the same rows alone; of a
            server's also against the weights, where they lay here.
        calibration: of a server's numbers: what they were compared with, and how they compared.
        started: when the run that wrote the part began, seconds since 1970.
        created: when the part was written, seconds since 1970.
        versions: of the libraries that numbers may depend on.
        imported: the file that the numbers came from; None for those computed here.
        version: of this record.
    """

    reference: Mapping[str, Any] | None = None
    scorer: Mapping[str, Any] | None = None
    device: str | None = None
    attention: str | None = None
    dtype: str | None = None
    route: str | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    noise: Noise = field(default_factory=Noise)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    started: float | None = None
    created: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    imported: ImportedFile | None = None
    version: int = RECORD_VERSION

    def as_json(self) -> dict[str, object]:
        """What is known, for the footer."""
        return {name: value for name, value in asdict(self).items() if value not in (None, {})}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> WriterRecord:
        """A record of any version; what it does not say has the default."""
        recorded = {item.name: values[item.name] for item in fields(cls) if item.name in values}
        if isinstance(recorded.get("noise"), dict):
            recorded["noise"] = Noise(**recorded["noise"])
        elif "noise" in recorded:
            recorded["noise"] = Noise(rms=NOISE_BEFORE_2 * recorded["noise"])
        if "imported" in recorded:
            recorded["imported"] = ImportedFile(**recorded["imported"])
        return cls(**{"version": 0, **recorded})


def footer_of(records: Iterable[WriterRecord]) -> str:
    """Records as a part's footer holds them."""
    return json.dumps([record.as_json() for record in records])


def records_of(footer: str) -> list[WriterRecord]:
    """The records of a part's footer; before format 2 there was always one."""
    values = json.loads(footer)
    if isinstance(values, dict):
        values = [values]
    return [WriterRecord.from_json(each) for each in values]


def distinct(records: Iterable[WriterRecord]) -> list[WriterRecord]:
    """In order; of records that differ in their time alone, the latest."""
    latest: dict[str, WriterRecord] = {}
    for record in records:
        timeless = replace(record, created=None)
        latest[json.dumps(timeless.as_json(), sort_keys=True)] = record
    return list(latest.values())


def wall_seconds(records: Sequence[WriterRecord]) -> float | None:
    """Time from the start of each run to its last part; None where one is not recorded."""
    ends: dict[float, float] = {}
    for record in records:
        if record.started is None or record.created is None:
            return None
        ends[record.started] = max(record.created, ends.get(record.started, 0.0))
    return sum(end - started for started, end in ends.items()) if ends else None
