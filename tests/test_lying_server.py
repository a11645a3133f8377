"""A reference behind a server: an honest one's numbers are the model's, a lying one's are not kept.

Every lie of `LIES` is played by a real server of a real (tiny) model. docs/served_references.md has
the same table, and a test says that it is.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import NamedTuple

import lying_server as lies
import pytest
import torch
from lying_server import Teller, serving
from served import NAME, engine_of, loading_with, numbers, of_the_library, reference_of

from mrpo_tools.cache import Cache
from mrpo_tools.errors import ServerError
from mrpo_tools.precomputing.encoded import encode, trees_of
from mrpo_tools.precomputing.meter import Meter
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.references.resolved import renderer_of, resolve
from mrpo_tools.scorer.calibration import Biased, most_requests
from mrpo_tools.scorer.trees import branches

HERE = "against the weights here, "
SPLIT = r"a response of \d+ tokens is [\d.]+ nats apart, and noise explains [\d.e-]+$"
TWICE = "asked for twice, "
UNREADABLE = r"/v1/completions: 3 attempts failed, the last: a reply that cannot be read: "
GENERATED = r"a token's log-prob is -[\d.]+ where it is generated and -[\d.]+ where it is part of"
INFINITE = r"\d+ of \d+ log-probs are infinite, positive or no numbers$"
UNSEEN = None


class Lie(NamedTuple):
    """What is said of it in docs/served_references.md, who tells it, and by which words it is
    refused without the weights (None where it is not) and with them."""

    name: str
    told_by: type[Teller]
    without: str | None
    with_weights: str
    all_tokens: str | None = None
    """The same without weights, where the server gives all tokens."""


LIES = (
    Lie("a temperature in every log-softmax", lies.Tempered, UNSEEN, HERE + SPLIT),
    Lie("the request's temperature applied", lies.TemperedAsAsked,
        "log-probs of a prompt depend on the temperature that is asked for$", ""),
    Lie("a second BOS, unseen", lies.DoubledBos, UNSEEN, HERE + SPLIT),
    Lie("a second BOS, in the reply", lies.DoubledBosShown,
        UNREADABLE + r"ValueError\('log-probs of 4 tokens, 4 counted, 3 asked'\)$", ""),
    Lie("stale values of a prefix cache", lies.Stale,
        r"another token \d+ changes nothing after it, as of a stale cache$", ""),
    Lie("another revision: weights 0.1 % away", lies.AnotherRevision, UNSEEN, HERE + SPLIT),
    Lie("every token's number is its neighbour's", lies.Shifted, GENERATED, ""),
    Lie("int8 weights, not declared", lies.Int8, UNSEEN, HERE + SPLIT),
    Lie("NF4 weights, not declared", lies.Nf4, UNSEEN, HERE + SPLIT),
    Lie("16-bit logits, float32 declared", lies.Narrow,
        r"its logits have 16 bits \(100% of them on one grid\)$", ""),
    Lie("minus infinity, clamped to -9999", lies.Infinite, INFINITE, ""),
    Lie("minus infinity in JSON", lies.InfiniteInJson, INFINITE, ""),
    Lie("null for a log-prob", lies.Null, UNREADABLE + r"ValueError\('a log-prob is None'\)$", ""),
    Lie("a missing entry in long lines", lies.Missing,
        UNREADABLE + r"ValueError\('token 5 of the prompt is \d+, not \[\]'\)$", ""),
    Lie("the likeliest token in place of ours", lies.WithoutOwn,
        UNREADABLE + r"ValueError\('token 1 of the prompt is \d+, not \[\d+\]'\)$", ""),
    Lie("renormalised over what is asked for", lies.Renormalised,
        r"a token's log-prob is -[\d.]+, and -[\d.]+ among the likeliest tokens$", ""),
    Lie("renormalised over the likeliest 20", lies.RenormalisedOverTwenty,
        "the likeliest tokens always have all the probability: they are renormalised$", ""),
    Lie("-0.01 nats a token, everywhere", lies.Biased, UNSEEN, HERE + SPLIT,
        r"probabilities of all tokens at one place add up to 0\.9900$"),
    Lie("-0.01 nats a token, in prompts alone", lies.BiasedPrompts, GENERATED, ""),
    Lie("the last token not computed", lies.LastDropped, GENERATED, ""),
    Lie("the last token not in the reply", lies.LastDroppedShown,
        UNREADABLE + r"ValueError\('log-probs of 2 tokens, 3 counted, 3 asked'\)$", ""),
    Lie("logarithms to the base 2", lies.Bits, UNSEEN, HERE + SPLIT,
        r"probabilities of all tokens at one place add up to 0\.\d+$"),
    Lie("two digits after the point", lies.TwoDigits,
        "every log-prob is rounded to 2 digits after the point$", ""),
    Lie("numbers that depend on other requests", lies.InCompany, TWICE + SPLIT, ""),
)  # fmt: skip
BY_NAME = {lie.name: lie for lie in LIES}


@pytest.fixture
def folder(tiny_models) -> Path:
    return tiny_models["llama"]


@pytest.fixture(scope="session")
def few(some_groups):
    """A dozen lines in ragged groups."""
    return some_groups[:4]


def refusal(folder, groups, teller, **words) -> str | None:
    """Why the calibration refuses a server; None where it does not."""
    with serving(teller) as server:
        try:
            engine = engine_of(folder, server, **words)
            engine.self_check(trees_of(encode(renderer_of(engine.resolved), groups)))
        except ServerError as error:
            return error.what
    return None


def reason(what: str) -> str:
    """Without the frame that every refused calibration has."""
    assert "\n" not in what
    frame = f"the server's log-probs cannot be those of reference '{NAME}': "
    if what.startswith(frame):
        assert what.endswith("; none is kept")
    return what.removeprefix(frame).removesuffix("; none is kept")


@pytest.mark.parametrize("name", BY_NAME)
def test_a_lie_is_refused_before_anything_is_kept(folder, few, name):
    """Without weights as the table says; with them always, and in the same words where they are
    not needed."""
    lie = BY_NAME[name]
    without = refusal(folder, few, lie.told_by(folder), calibration="server")
    if lie.without is not None:
        assert re.search(lie.without, reason(without))
        return
    assert without is None
    seen = refusal(folder, few, lie.told_by(folder), calibration="weights")
    assert re.search(lie.with_weights, reason(seen))
    everything = refusal(folder, few, lie.told_by(folder, most=-1), calibration="server")
    if lie.all_tokens is None:
        assert everything is None
    else:
        assert re.search(lie.all_tokens, reason(everything))


IN_16_BITS = {
    "a temperature in every log-softmax", "a second BOS, unseen", "NF4 weights, not declared",
    "logarithms to the base 2",
}  # fmt: skip
"""Lies that only weights see, and that are larger than the noise of 16 bits on a dozen lines of
this model, whose noise is large (0.07 nats a token)."""


@pytest.mark.long
@pytest.mark.parametrize("name", [lie.name for lie in LIES if lie.without is UNSEEN])
def test_in_16_bits_what_is_larger_than_noise_is_refused(folder, few, name):
    teller = BY_NAME[name].told_by(folder, torch.bfloat16, company=True)
    seen = refusal(folder, few, teller, dtype="bfloat16", calibration="weights")
    assert (seen is not None) == (name in IN_16_BITS)


def test_the_table_in_the_docs_is_this_one():
    text = (Path(__file__).parent.parent / "docs" / "served_references.md").read_text()
    rows = dict(re.findall(r"^\| ([^|]+) \| (refused|\*\*kept\*\*[^|]*) \| refused \|", text, re.M))
    words = {
        lie.name: "refused"
        if lie.without is not UNSEEN
        else "**kept** ¹"
        if lie.all_tokens is not None
        else "**kept**"
        for lie in LIES
    }
    assert rows == words


@pytest.mark.parametrize(
    ("dtype", "calibration"), [("float32", "weights"), ("float32", "server"), ("bfloat16", "auto")]
)
def test_an_honest_server_is_the_model(folder, few, tmp_path, capsys, dtype, calibration):
    """Each cached number is the sum that the library's own model gives, a line alone. In bfloat16
    lines come in batches, so numbers are as far apart as noise: measured, and recorded."""
    arithmetic, cache = getattr(torch, dtype), Cache(tmp_path / "cache")
    teller = Teller(folder, arithmetic, company=dtype != "float32", most=-1)
    with serving(teller) as server:
        words = reference_of(folder, server, dtype=dtype, calibration=calibration)
        [summary] = precompute({NAME: words}, few, cache, "few", load=loading_with())
        resolved = resolve(NAME, words)
        sent = {tuple(request.body["prompt"]) for request in server.requests}
    encoded = encode(renderer_of(resolved), few)
    rows = [row for tree in trees_of(encoded) for row in branches(tree)]
    lines = [([*row.prompt, *row.responses[0]], len(row.prompt)) for row in rows]
    assert {tuple(ids) for ids, _ in lines} <= sent  # our ids, and no others of a response
    expected = of_the_library(folder, lines, arithmetic)
    kept = numbers(cache)
    keys = [key for group in few for key in group.response_ids]
    noise = summary.store.noise()
    for key, nats, (ids, start) in zip(keys, expected, lines, strict=True):
        status, logp, tokens = kept[key]
        assert (status, tokens) == ("ok", len(ids) - start)
        assert abs(logp - nats) <= (1e-5 * tokens if dtype == "float32" else 8 * noise.rms * tokens)
    [record] = summary.store.recorded()
    about = record.calibration
    assert about["lines"] == len(lines) == len(kept)
    assert about["against"] == ("itself" if calibration == "server" else "weights")
    assert record.device == "vllm 0.32.0"
    told = capsys.readouterr().err
    if calibration == "server":
        assert re.search(r"against themselves: .*; whose they are is believed \(not wished", told)
    else:
        assert f"log-probs of {len(lines)} responses against the weights here: root mean" in told
    assert noise.rms < 1e-6 if dtype == "float32" else 0.01 < noise.rms < 0.2
    if calibration != "server":
        assert abs(about["weights"]["bias"]) < (1e-6 if dtype == "float32" else 0.1)
        assert about["weights"]["lines"] == len(lines)
    else:
        assert about["weights"] == "not wished for"


def test_without_weights_here_the_record_says_so(folder, few, tmp_path):
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    cache = Cache(tmp_path / "cache")
    with serving(Teller(folder)) as server:
        words = {NAME: reference_of(bare, server)}
        [summary] = precompute(words, few, cache, "few", load=loading_with())
    [record] = summary.store.recorded()
    assert record.calibration["weights"] == "the weights do not lie here"
    assert summary.store.identity.fields["weights"] is None


def test_a_bar_says_how_fast_a_server_is(folder, few):
    """Tokens and tokens a second: no share of a peak, and no memory, as neither is known."""
    with serving(Teller(folder)) as server:
        engine = engine_of(folder, server, calibration="server")
        trees = trees_of(encode(renderer_of(engine.resolved), few))
        batches = engine.batches(trees, None)
        meter = Meter(engine, peak=math.inf)
        for batch in batches:
            meter.add(batch)
    tokens = sum(len(row.prompt) + len(row.responses[0]) for [row] in batches)
    assert re.fullmatch(rf"{tokens:,} tokens, [\d,]+ tokens/s", meter.note)


def test_a_calibration_asks_for_no_more_than_is_told(folder, few):
    teller = Teller(folder, most=-1)
    assert refusal(folder, few, teller, calibration="server") is None
    lines = sum(len(group.responses) for group in few)
    settling = 2
    assert 0.8 * most_requests(lines) < teller.asked - settling <= most_requests(lines)


class Turning(Teller):
    """Honest first; after `since` requests another one answers."""

    def __init__(self, folder: Path, other: Teller, since: int) -> None:
        super().__init__(folder)
        self.other, self.since = other, since

    def __call__(self, body):
        if self.asked >= self.since:
            return self.other(body)
        return super().__call__(body)


def stale(folder: Path, since: int) -> Teller:
    class Later(lies.Stale):
        pass

    Later.since = since
    return Later(folder)


def turning(kind: type[Teller]):
    return lambda folder, since: Turning(folder, kind(folder), since)


LATER = {
    "stale values": stale,
    "another revision": turning(lies.AnotherRevision),
    "a temperature": turning(lies.Tempered),
    "minus infinity": turning(lies.Infinite),
    "a shift": turning(lies.Shifted),
}
FOUND = (
    r"(a response of \d+ tokens is [\d.e-]+ nats apart, and noise explains [\d.e-]+"
    r"|a line of the calibration has no log-probs"
    r"|another token \d+ changes (log-probs of tokens before it"
    r"|nothing after it, as of a stale cache))"
)
"""By the line that is asked for again, or by the one that is a little other."""


@pytest.mark.parametrize("name", LATER)
def test_a_lie_that_begins_in_the_middle_is_found_before_its_numbers_are_kept(
    folder, some_groups, tmp_path, name
):
    """What was checked before is kept and right; the same command goes on at an honest server."""
    groups, cache = some_groups[:8], Cache(tmp_path / "cache")
    load = loading_with(check_rows=6)
    with serving(Teller(folder)) as honest:
        words = reference_of(folder, honest, calibration="server")
        whole = Cache(tmp_path / "whole")
        precompute({NAME: words}, groups, whole, "some", load=load)
        asked = len(honest.requests)
    right = numbers(whole)
    rows = len(right)
    since = asked - rows // 2
    with serving(LATER[name](folder, since)) as server:
        words = reference_of(folder, server, calibration="server")
        with pytest.raises(ServerError) as error:
            precompute({NAME: words}, groups, cache, "some", load=load)
    frame = f"the server's numbers of '{NAME}' have changed meanwhile: "
    last = r"; the \d+ that came since the last check are not kept"
    assert re.fullmatch(frame + FOUND + last, error.value.what)
    kept = numbers(cache)
    assert 0 < len(kept) < rows
    assert all(kept[key] == right[key] for key in kept)
    with serving(Teller(folder)) as server:
        words = reference_of(folder, server, calibration="server")
        [summary] = precompute({NAME: words}, groups, cache, "some", load=load)
    assert summary.reused == len(kept)
    assert numbers(cache) == right


def test_another_version_in_the_middle_ends_the_run(folder, some_groups, tmp_path):
    """The engine is replaced while it is asked: what it says of itself is asked at every check."""
    cache, pages = Cache(tmp_path / "cache"), {"/version": {"version": "0.32.0"}}

    class Replaced(Teller):
        def __call__(self, body):
            if self.asked >= 190:
                server.pages["/version"] = {"version": "0.33.0"}
            return super().__call__(body)

    with serving(Replaced(folder), pages=pages) as server:
        words = {NAME: reference_of(folder, server, calibration="server")}
        with pytest.raises(ServerError, match=r"serves tiny by vLLM 0\.33\.0 now, and the numbers"):
            precompute(words, some_groups[:16], cache, "some", load=loading_with(check_rows=8))
    assert all(store.identity.fields["engine_version"] == "0.32.0" for store in cache.references())


def test_numbers_that_are_none_are_asked_for_again_and_never_used(folder, few, tmp_path):
    """A line that is not of the calibration comes with minus infinity, twice."""

    class OneBad(Teller):
        bad: tuple[int, ...] = ()

        def logps(self, ids, body):
            logps = super().logps(ids, body)
            return logps - float("inf") if tuple(ids) == self.bad else logps

    teller, cache = OneBad(folder), Cache(tmp_path / "cache")
    with serving(teller) as server:
        words = reference_of(folder, server, calibration="server")
        engine = engine_of(folder, server, calibration="server")
        trees = trees_of(encode(renderer_of(engine.resolved), few))
        engine.self_check(trees[:1])
        [*_, last] = [row for tree in trees for row in branches(tree)]
        teller.bad = (*last.prompt, *last.responses[0])
        [(_, logps)] = engine.computed([[last]])
        assert logps != logps or str(logps) == "[nan]"
        assert str(engine.plain_logps([last])) == "[[nan]]"
    assert words.server is not None
    assert not cache.path.is_dir()


def test_what_is_refused_is_told_in_one_line_by_the_command(folder, few, here, mrpo):
    from stores import write_groups

    write_groups(Path("data.jsonl"), few)
    with serving(lies.Shifted(folder)) as server:
        project = {
            "cache": "cache",
            "references": {NAME: reference_of(folder, server).model_dump(exclude_none=True)},
        }
        Path("mrpo.yaml").write_text(json.dumps(project))
        err = mrpo("precompute --dataset data.jsonl", 1).err
    line = next(line for line in err.splitlines() if "log-probs cannot be those" in line)
    assert "where it is generated and" in line
    assert issubclass(Biased, ServerError)
    assert not numbers(Cache("cache"))
