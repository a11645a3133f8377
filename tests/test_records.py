"""What the writer of a part records of itself: written, read, and read from older parts."""

from __future__ import annotations

import json

import pytest
from stores import row

from mrpo_tools.cache.records import (
    ImportedFile,
    WriterRecord,
    distinct,
    footer_of,
    records_of,
    wall_seconds,
)
from mrpo_tools.maths.noise import Noise

FULL = WriterRecord(
    reference={"model": "models/llama", "batch_tokens": 64}, device="cpu", attention="sdpa",
    dtype="float32", route="tree", refused={"tree": "no reason"},
    noise=Noise(rms=1e-6, bias=-1e-8, tokens=50), started=10.0, created=20.0,
    versions={"torch": "2.8"}, imported=ImportedFile("vLLM", "x.jsonl", "0" * 64),
)  # fmt: skip


@pytest.mark.parametrize("record", [FULL, WriterRecord()])
def test_records_come_back_as_they_were_written(record):
    assert records_of(footer_of([record, FULL])) == [record, FULL]


@pytest.mark.parametrize("alone", [True, False], ids=["format 1", "format 2"])
def test_older_records_have_defaults(alone):
    """Before they said their version; in format 1 a part had one record, not a list."""
    old = {"device": "cuda", "created": 5.0, "versions": {"torch": "2.0"}}
    footer = json.dumps(old if alone else [old])
    expected = WriterRecord(device="cuda", created=5.0, versions={"torch": "2.0"}, version=0)
    assert records_of(footer) == [expected]
    assert records_of(footer_of([expected])) == [expected]


def test_of_records_that_differ_in_their_time_alone_the_latest_stays():
    first, second, third = (
        WriterRecord(device=device, created=created)
        for device, created in (("cpu", 1.0), ("cuda", 2.0), ("cpu", 3.0))
    )
    assert distinct([first, second, third]) == [third, second]


def test_wall_time_is_from_each_start_to_its_last_part():
    """Runs 10 to 25 and 100 to 101: 16 seconds; unknown where one run does not say its start."""
    times = [(10.0, 20.0), (100.0, 101.0), (10.0, 25.0)]
    records = [WriterRecord(started=started, created=created) for started, created in times]
    assert wall_seconds(records) == 16.0
    assert wall_seconds([*records, WriterRecord(created=30.0)]) is None
    assert wall_seconds([]) is None


def test_a_store_knows_its_noise_and_its_wall_time(store):
    """The largest rms, and the largest bias of either sign."""
    assert (store.noise(), store.wall_seconds()) == (Noise(), None)
    for index, noise in enumerate((Noise(0.01, -0.002, 9), Noise(0.02, 0.001, 7), Noise())):
        store.append([row(index)], WriterRecord(noise=noise))
    assert (store.noise(), store.wall_seconds()) == (Noise(0.02, -0.002, 7), None)


def test_noise_of_older_records_was_a_mean_over_a_short_response():
    """0.001 nats a token of a response of 16 tokens is what an rms of 0.004 gives."""
    [record] = records_of(json.dumps([{"version": 1, "noise": 0.001}]))
    assert record.noise == Noise(rms=0.004)
