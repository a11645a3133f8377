"""Very many groups, and very wide ones: tokens that are made late, numbers in blocks, memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_data import PRINT_PEAK, run_script
from trained import log_of, recipe

from mrpo_tools.cache import Cache
from mrpo_tools.errors import CacheStale, ResourceError
from mrpo_tools.groups import Group, Response, user_prompt
from mrpo_tools.maths.shapes import CELLS, blocks
from mrpo_tools.methods.combination import Combination, combine
from mrpo_tools.methods.tensors import look_up
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.references.rendering import EncodedGroup
from mrpo_tools.references.resolved import renderer_of, resolve
from mrpo_tools.training.encoded import ROOM, SAMPLE, Expected, encode_all, encode_late, spread
from mrpo_tools.training.prepare import check_width, prepare
from mrpo_tools.training.train import train

BENCH = Path(__file__).parent.parent / "bench"
GROUPS, GROWTH, SECONDS = 100_000, 3_000, 60
"""Bytes a group, so that a million fit into 3 GB, and seconds on a busy machine."""


def plain(groups: Sequence[EncodedGroup]) -> list[tuple]:
    return [
        (list(group.prompt_ids), [(list(r.ids), r.token_hash, r.truncated, r.overlong)
                                  for r in group.responses])
        for group in groups
    ]  # fmt: skip


@pytest.fixture(scope="module")
def policy(references):
    return resolve("llama", references["llama"])


@pytest.fixture(scope="module")
def truth(policy, some_groups):
    """By the renderer itself."""
    renderer = renderer_of(policy)
    return plain([renderer.encode(group) for group in some_groups])


def expected(cached, groups) -> Expected:
    tensors = look_up([cached.find("llama")], groups)
    return Expected(cached.find("llama"), tensors.token_hashes, tensors.mask.numpy())


@pytest.mark.parametrize("room", [ROOM, 0, 300])
def test_late_ids_are_the_renderers_whether_they_are_kept_or_not(
    policy, some_groups, cached, truth, room
):
    late = encode_late(policy, some_groups, expected(cached, some_groups), room)
    assert plain(late) == plain(late) == truth  # made, and found again where they were kept
    chosen = late.of_groups(np.array([7, 3, 11])).of_groups(np.array([2, 0]))
    assert plain(chosen) == [truth[11], truth[7]]
    assert plain(encode_all(policy, some_groups)) == truth


def test_what_is_cut_and_what_does_not_fit_is_kept_as_such(references, some_groups, truth):
    sizes = sorted(len(prompt) + len(r[0]) for prompt, responses in truth for r in responses)
    half = sizes[len(sizes) // 2]
    for overlong in ("skip", "truncate"):
        short = references["llama"].model_copy(update={"max_length": half, "overlong": overlong})
        resolved = resolve("llama", short)
        renderer = renderer_of(resolved)
        made = plain([renderer.encode(group) for group in some_groups])
        assert plain(encode_all(resolved, some_groups)) == made
        marks = {mark for _, responses in made for *_, cut, long in responses
                 for mark in (cut, long)}  # fmt: skip
        assert marks == {True, False}


def test_batches_of_late_ids_are_those_of_ids_that_are_made_at_once(
    policy, references, some_groups, cached
):
    prepared = prepare(recipe(), some_groups, cached, references)
    ready = prepared.training
    eager = replace(ready, encoded=encode_all(policy, prepared.groups))
    for index in ([0, 1], [5, 3, 8], list(range(len(ready)))):
        for tree, other in zip(ready.trees(index), eager.trees(index), strict=True):
            assert list(tree.prompt) == list(other.prompt)
            assert [*map(list, tree.responses)] == [*map(list, other.responses)]
            assert list(tree.keys) == list(other.keys)
    lengths = torch.zeros_like(ready.lengths)
    for g, group in enumerate(eager.encoded):
        for n, response in enumerate(group.responses):
            lengths[g, n] = len(response.ids)
    assert ready.lengths[ready.tensors.mask].equal(lengths[ready.tensors.mask])


def test_another_token_is_refused_at_the_start_or_by_the_batch_that_makes_it(
    policy, some_groups, cached
):
    many = list(some_groups) * 30  # more than the sample has
    known = expected(cached, many)
    outside = sorted(set(range(len(many))) - set(spread(len(many))))[5]
    assert len(many) > SAMPLE
    known.hashes[outside, 1] = b"0" * 16
    late = encode_late(policy, many, known)
    assert late[outside - 1]
    with pytest.raises(CacheStale, match="the tokens of 1 responses differ"):
        late.of_groups(np.array([outside]))[0]
    known.hashes[spread(len(many))[2], 0] = b"1" * 16
    with pytest.raises(CacheStale, match="the tokens of 2 responses differ"):
        encode_late(policy, many, known)


def test_blocks_cover_every_group_once():
    for shape in ((0, 4), (1, 4), (10, 0), (3, 2 * math.isqrt(CELLS)), (CELLS // 8, 4)):
        covered = [g for part in blocks(shape) for g in range(*part.indices(shape[0]))]
        assert covered == list(range(shape[0]))


@pytest.mark.parametrize("how", [Combination(), Combination(combine="separate"),
                                 Combination("geometric", "uniform", "none")])  # fmt: skip
def test_a_combination_of_many_blocks_is_that_of_each_group(how):
    """Bit for bit, at the borders of blocks too."""
    torch.manual_seed(0)
    step = CELLS // 16
    logps = -100 * torch.rand(step + 1000, 4, 3, dtype=torch.float64)
    mask = torch.rand(logps.shape[:2]) < 0.9
    every = combine(logps, mask, how)
    for some in (slice(0, 50), slice(step - 50, step + 50), slice(len(logps) - 50, None)):
        alone = combine(logps[some], mask[some], how)
        for name in ("weights", "clipped", "virtual", "logps"):
            assert getattr(every, name)[some].equal(getattr(alone, name)), name


def test_a_group_of_500_responses_trains(references, tmp_path):
    """Beside a group of two. Before the first step the policy is its reference: every pair's loss
    is log 2, however many there are."""
    groups = [
        Group(user_prompt(f"q{size}"), tuple(Response(f"a{n}", float(n)) for n in range(size)))
        for size in (500, 2)
    ]
    cache = Cache(tmp_path / "cache")
    precompute({"llama": references["llama"]}, groups, cache, "wide")
    words = recipe(loss="dpo", refs=["llama"], pairing="all", max_steps=2,
                   per_device_train_batch_size=2, gradient_accumulation_steps=1)  # fmt: skip
    run = train(words, groups, cache, references, tmp_path / "run")
    losses = [entry["loss"] for entry in log_of(run.path)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[1] < losses[0]
    assert run.metrics.groups == 2


def test_a_wide_group_among_very_many_is_refused_with_the_numbers():
    """A million groups as wide as 500: 500·10⁶·(70 + 35·3) bytes are 87.5 GB; of 4, 0.7 GB."""
    sizes = np.full(1_000_000, 4)
    check_width(sizes, 3, 1e9)
    sizes[7] = 500
    with pytest.raises(ResourceError, match=r"4\.0 responses .* the 500 of the largest.* 87\.5 GB"):
        check_width(sizes, 3, 80e9)


SCRIPT = f"""
import sys, time
sys.path.insert(0, {str(BENCH)!r})
import numpy as np, pyarrow as pa, torch
import million
from mrpo_tools.cache import LOGPS_SCHEMA, Cache
from mrpo_tools.cache.mapped import MappedGroups
from mrpo_tools.groups import hash_groups
from mrpo_tools.methods.combination import Combination, combine
from mrpo_tools.methods.tensors import look_up, reference_accuracies
from mrpo_tools.references.identity import Identity
from mrpo_tools.training.held_out import about_data

cache, batches = Cache("cache"), []
stores = [cache.store(name, Identity({{"model": name}})) for name in ("a", "b", "c")]
for start in range(0, {GROUPS}, 5000):
    chunk = million.Chunk.of(start, 5000, 4)
    groups, prompts, responses = chunk.ids()
    batches.append(million._batch(chunk, groups, prompts, responses))
    count = len(responses)
    for store in stores:
        columns = {{"response_id": [key.hex() for key in responses],
                   "prompt_id": [key.hex() for key in prompts for _ in range(4)],
                   "logp": -np.random.rand(count), "num_tokens": [9] * count,
                   "num_bytes": [40] * count, "status": ["ok"] * count,
                   "truncated": [False] * count, "token_hash": ["0" * 16] * count}}
        store.write(pa.table(columns, schema=LOGPS_SCHEMA), 1.0, [])
groups = MappedGroups(batches)
def peak():
{"".join(f"    {line}" + chr(10) for line in PRINT_PEAK.strip().splitlines())}
peak()
begun = time.process_time()
tensors = look_up(stores, groups)
combined = combine(tensors.logps, tensors.mask, Combination())
reference_accuracies(tensors), about_data(groups, groups), hash_groups(groups)
print(time.process_time() - begun)
peak()
print(int(tensors.mask.sum()))
"""


def test_the_start_of_many_groups_is_quick_and_small(tmp_path):
    """All that `train` knows of 100,000 groups before tokens, beside what the process held."""
    before, seconds, after, responses = map(float, run_script(SCRIPT, tmp_path))
    assert responses == 4 * GROUPS
    assert seconds < SECONDS * GROUPS / 1e5
    assert (after - before) * 2**20 < GROWTH * GROUPS
    assert after > before
