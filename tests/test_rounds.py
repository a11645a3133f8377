"""Rounds: what a recipe of them means, what each asks and trains on; a stop loses nothing."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import oracle
import pytest
import torch
import yaml
from trained import log_of, weights_of

from mrpo_tools.cache import Cache
from mrpo_tools.cache.current import stores_of
from mrpo_tools.errors import Preempted, UsageError
from mrpo_tools.groups import Group, Response, user_prompt
from mrpo_tools.rounds.mixing import asked_in, beside_pairs, kept_of
from mrpo_tools.rounds.plan import load_round_recipe
from mrpo_tools.rounds.record import read_round
from mrpo_tools.rounds.rounds import run_rounds
from mrpo_tools.rounds.step import RUN, Rounds, Steps
from mrpo_tools.runs.run import read_run
from mrpo_tools.sampling import sample_groups
from mrpo_tools.scoring.rules import load_rule
from mrpo_tools.sources import load_groups
from mrpo_tools.training.prepare import prepare
from mrpo_tools.training.train import train

RECIPE = {
    "loss": "mpo", "beta": 1.0, "learning_rate": 1e-2, "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2, "logging_steps": 1, "score": "by_letters",
    "held_out_score": "by_length",
}  # fmt: skip
ROUNDS = {
    "policy": "llama", "references": ["base", "history"], "n": 4, "max_new_tokens": 8, "samples": 2,
    "keep_status": ["truncated"],
}  # fmt: skip


def answer(text: str, **about) -> Response:
    return Response(text, finish_reason="stop", **about)


def prompts(count: int) -> list[Group]:
    pair = (Response("a", chosen=True), Response("b", chosen=False))
    return [Group(user_prompt(f"Prompt {n}"), pair, split="train") for n in range(count)]


def test_every_prompt_is_asked_before_any_is_asked_again():
    """Ten prompts, four a round: 4 + 4 + 2 and two of the first again; the seed draws others."""
    every = prompts(10)
    asked = [asked_in(every, number, 4, seed=0) for number in range(1, 4)]
    names = [[group.prompt_id for group in groups] for groups in asked]
    assert [len(set(row)) for row in names] == [4, 4, 4]
    assert len({*names[0], *names[1]}) == 8
    assert {*names[2]} - {*names[0], *names[1]} == {g.prompt_id for g in every} - {
        *names[0], *names[1]
    }  # fmt: skip
    assert {*names[2]} & {*names[0]}
    assert not {*names[2]} & {*names[1]}
    assert asked_in(every[::-1], 1, 4, seed=0) == asked[0][::-1]
    assert {g.prompt_id for g in asked_in(every, 1, 4, seed=1)} != {*names[0]}
    assert asked_in(every, 7, None, seed=0) == every
    assert asked_in(every, 7, 10, seed=0) == every


def test_a_share_of_the_earlier_groups_is_kept_by_lot():
    """A half of 1,000 within five standard deviations (16), another half in another round."""
    every = prompts(1000)
    second, third = (kept_of(every, 0.5, number, seed=0) for number in (2, 3))
    assert abs(len(second) - 500) < 80
    assert abs(len([group for group in second if group in third]) - 250) < 70
    assert kept_of(every, 0.0, 2, seed=0) == []
    assert kept_of(every, 1.0, 2, seed=0) == every


def test_samples_stand_beside_a_labelled_pair():
    """Without their scores; one that repeats a side stands there alone; a scored group gives its
    best and worst; a prompt without a pair, or without samples, is left out."""
    labelled, scored, tied, alone = (
        Group(user_prompt(name), responses)
        for name, responses in {
            "labelled": (Response("no", chosen=False), Response("yes", chosen=True)),
            "scored": (Response("mid", 5.0), Response("best", 9.0), Response("worst", 1.0)),
            "tied": (Response("one", 5.0), Response("two", 5.0)),
            "alone": (Response("no", chosen=False), Response("yes", chosen=True)),
        }.items()
    )
    samples = [
        Group(user_prompt(name), (answer("yes", score=3.0), answer("other", score=1.0)))
        for name in ("labelled", "scored", "tied")
    ]
    made = beside_pairs([labelled, scored, tied, alone], samples)
    assert [(r.content, r.chosen, r.score) for r in made[0].responses] == [
        ("yes", True, None), ("no", False, None), ("other", None, None),
    ]  # fmt: skip
    assert [(r.content, r.chosen, r.score) for r in made[1].responses] == [
        ("best", True, None), ("worst", False, None), ("yes", None, None), ("other", None, None),
    ]  # fmt: skip
    assert len(made) == 2
    with pytest.raises(UsageError, match="no labelled pair"):
        beside_pairs([tied], samples)


def written(folder: Path, recipe: dict, rounds: dict | None) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe if rounds is None else {**recipe, "rounds": rounds}))
    return path


def test_what_a_recipe_of_rounds_means(tmp_path):
    """`history` is the last m policies, the last one first; the samples are of the last policy;
    each round has its own keys, and the last of them hold on."""
    words = {**RECIPE, "loss": "rlhf"}
    plan = {**ROUNDS, "references": ["base", "mistral", "history"], "history": 2,
            "by_round": [{"learning_rate": 3e-7}, {"learning_rate": 2e-7}]}  # fmt: skip
    loaded = load_round_recipe(written(tmp_path, words, plan))
    first = loaded.recipe("llama", [], None)
    assert first.refs == ["llama", "mistral"]
    assert (first.behaviour, first.policy, first.learning_rate) == ("llama", None, 3e-7)
    fourth = loaded.recipe("llama", ["r3", "r2", "r1"], "rounds/round-3/run")
    assert fourth.refs == ["llama", "mistral", "r3", "r2"]
    assert (fourth.behaviour, fourth.policy, fourth.learning_rate) == (
        "r3", "rounds/round-3/run", 2e-7,
    )  # fmt: skip
    assert fourth.score == "by_letters"
    assert loaded.plan.sampling(2).seed == loaded.plan.sampling(1).seed + 1
    kd = load_round_recipe(written(tmp_path, {**words, "loss": "kd"}, plan))
    assert kd.recipe("llama", [], None).score is None  # it measures; labels train


REFUSED = [
    ({"score": None}, {}, "nothing says whose"),
    ({"refs": ["llama"]}, {}, "refs is set by each round"),
    ({"policy": "llama"}, {}, "policy is set by each round"),
    ({}, {"by_round": [{"split": "test"}]}, "split is set by each round"),
    ({}, {"references": ["history"]}, "references begins with base"),
    ({}, {"start": "first"}, "start: "),
    ({}, {"nn": 3}, "nn: unknown key"),
    ({}, {"by_round": [{}, {"learning_rat": 1}]}, "learning_rat: unknown key"),
    ({"loss": "kd"}, {"references": ["base"]}, "kd"),
]


@pytest.mark.parametrize(("recipe", "rounds", "message"), REFUSED[:-1])
def test_what_a_recipe_of_rounds_cannot_say(recipe, rounds, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        load_round_recipe(written(tmp_path, RECIPE | recipe, ROUNDS | rounds))


@pytest.fixture
def rounds_in(tiny_models, references, demo_groups, tmp_path, monkeypatch):
    """`rounds_in("a")` are rounds in the directory a/rounds, with a cache of their own."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    data = [
        replace(group, split="test" if place < 3 else "train")
        for place, group in enumerate(demo_groups[:15])
    ]

    def made(name: str, recipe: dict | None = None, rounds: dict | None = None, **words) -> Rounds:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        path = written(folder, RECIPE | (recipe or {}), ROUNDS | (rounds or {}))
        scorers = [load_rule("marking:letters", called="by_letters"),
                   load_rule("marking:length", called="by_length")]  # fmt: skip
        return Rounds(
            output=folder / "rounds", recipe=load_round_recipe(path), base="llama",
            models=references, groups=data, split="train", eval_split="test",
            cache=Cache(folder / "cache"), scorers=scorers, **words,
        )  # fmt: skip

    return made


def test_two_rounds(rounds_in):
    """The second trains on answers of the first one's policy, which is a reference too."""
    rounds = rounds_in("a", rounds={"keep": 1.0, "prompts": 8})
    first, second = run_rounds(rounds, 2)
    assert (first.references, second.references) == (["llama"], ["llama", "rounds-round-1"])
    assert first.policy.startswith("llama@")
    assert second.policy.startswith("rounds-round-1@")
    assert second.kept == first.groups - first.kept == first.groups
    assert first.answered == second.answered == 32
    assert first.kl_last_nats == pytest.approx(first.outcomes[-1].kl_nats, abs=1e-9)
    assert second.kl_last_nats != pytest.approx(second.outcomes[-1].kl_nats, abs=1e-3)
    assert {each.scorer for each in second.outcomes} == {"marking:letters", "marking:length"}
    asked = [
        load_groups(rounds.output / f"round-{n}" / "own.jsonl", keep_status=["truncated"]).groups
        for n in (1, 2)
    ]
    prompts_of = [{group.prompt_id for group in groups} for groups in asked]
    held_out = {group.prompt_id for group in rounds.groups if group.split == "test"}
    assert not (prompts_of[0] | prompts_of[1]) & held_out
    assert len(prompts_of[0] & prompts_of[1]) <= 4  # eight, the other four, and four again
    table = (rounds.output / "table.md").read_text()
    assert "| 2 | llama,rounds-round-1 |" in table
    assert run_rounds(rounds, 2) == [first, second]


def test_a_round_that_is_stopped_anywhere_goes_on_to_the_same_end(rounds_in):
    """Stopped after the samples, before and within training: nothing is sampled or trained twice,
    and the policies are bitwise those of an undisturbed experiment."""
    calm = run_rounds(rounds_in("calm"), 2)
    stops = iter([True, False, False, True])  # after the samples of some attempts
    stops_training = iter([True, False, True])
    generated = []

    def sample(*arguments, **words):
        samples = sample_groups(*arguments, **words)
        generated.append(samples.generated)
        if next(stops, False):
            raise Preempted("stopped")
        return samples

    def trained(**words):
        if next(stops_training, False):
            raise Preempted("stopped")
        return train(**words)

    disturbed = rounds_in("disturbed", steps=Steps(sample, trained))
    attempts = 0
    while read_round(disturbed.output, 2) is None:
        attempts += 1
        try:
            records = run_rounds(disturbed, 2)
        except Preempted:
            continue
    assert attempts == 5
    assert sum(generated) == sum(record.answered for record in records)
    for before, after in zip(calm, records, strict=True):
        same = {"seconds": {}, "policy": ""}
        assert before.model_copy(update=same) == after.model_copy(update=same)
    calm_run, disturbed_run = (
        weights_of(rounds_in(name).output / "round-2" / RUN) for name in ("calm", "disturbed")
    )
    assert all(calm_run[key].equal(disturbed_run[key]) for key in calm_run)


def test_another_recipe_is_refused_and_more_rounds_are_not(rounds_in):
    run_rounds(rounds_in("a"), 1)
    with pytest.raises(UsageError, match=r"beta was 1\.0, is now 2\.0"):
        run_rounds(rounds_in("a", recipe={"beta": 2.0}), 1)
    assert len(run_rounds(rounds_in("a"), 2)) == 2


def oracle_groups(prepared, stores, behaviour, policy) -> list[oracle.Group]:
    """What the round trains on, in plain Python, with numbers read from the cache's files."""
    numbers = {
        store.name: {row["response_id"]: row["logp"] for part in store.parts()
                     for row in part.table.to_pylist()}
        for store in (*stores, behaviour)
    }  # fmt: skip
    groups = []
    for place, group in enumerate(prepared.groups):
        keys = group.response_ids
        rows = [[numbers[store.name][key] for store in stores] for key in keys]
        labels = [response.chosen for response in group.responses]
        sampled = [label is None for label in labels]
        mixed = any(label is not None for label in labels)
        groups.append(
            oracle.Group(
                policy=policy[place, : len(keys)].tolist(),
                reference=rows,
                lengths=[1] * len(keys),
                scores=None if mixed else [response.score for response in group.responses],
                chosen=[bool(label) for label in labels] if mixed else None,
                weights=[1 / len(stores)] * len(stores),
                behaviour=[numbers[behaviour.name][key] for key in keys],
                unjudged=sampled if mixed else None,
            )
        )
    return groups


@pytest.mark.parametrize("loss", ["rlhf", "kd"])
def test_objectives_on_samples_see_the_cached_policy_that_drew_them(loss, rounds_in):
    """The second round's losses at another policy are the oracle's, from numbers read from the
    cache's files: b is the first round's policy, and labels stand beside samples for kd alone."""
    words = {"loss": loss, "trust_region": "none", "beta": 0.5, "chosen": "auto"}
    rounds = rounds_in("a", recipe=words, rounds={"references": ["base", "mistral"]})
    assert run_rounds(rounds, 2)[1].groups
    recipe = rounds.recipe_of(2)
    assert recipe.behaviour == "rounds-round-1"
    data = load_groups(rounds.output / "round-2" / "data.jsonl", keep_status=["truncated"]).groups
    models = rounds.models_of(2)
    prepared = prepare(recipe, data, rounds.cache, models)
    stores = stores_of(rounds.cache, recipe.refs, models)
    [behaviour] = stores_of(rounds.cache, [recipe.behaviour], models)
    generator = torch.Generator().manual_seed(0)
    shape = tuple(prepared.training.tensors.mask.shape)
    drawn = prepared.training.combined.behaviour.nan_to_num(nan=-20.0)
    policy = drawn + torch.randn(shape, generator=generator, dtype=torch.float64)
    applied = prepared.training.objective(list(range(len(prepared.training))), policy)
    groups = oracle_groups(prepared, stores, behaviour, policy)
    if loss == "rlhf":
        groups = [
            replace(group, reference=[sum(row) / len(row) for row in group.reference])
            for group in groups
        ]
    expected = oracle.losses(loss, groups, beta=0.5)
    assert applied.losses.tolist() == pytest.approx(expected, abs=1e-9)
    assert read_run(rounds.output / "round-2" / RUN).record.behaviour == str(behaviour)
    start = log_of(rounds.output / "round-1" / RUN)[0]["loss"]
    assert start == pytest.approx(math.log(2) if loss == "kd" else 0.0, abs=1e-5)


def test_samples_beside_labels_are_for_kd_alone(rounds_in):
    rounds = rounds_in("a", recipe={"loss": "kd"}, rounds={"references": ["base", "mistral"]})
    run_rounds(rounds, 1)
    data = load_groups(rounds.output / "round-1" / "data.jsonl", keep_status=["truncated"]).groups
    recipe = rounds.recipe_of(1).model_copy(update={"loss": "dpo", "behaviour": None})
    with pytest.raises(UsageError, match="dpo cannot compare them"):
        prepare(recipe, data, rounds.cache, rounds.models)


def test_the_command(here, mrpo, tiny_models, demo_groups, monkeypatch):
    """The dry run names what each round asks and does nothing; the command makes a round, and what
    it says to do next can be done."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    rows = [
        json.dumps(replace(group, split="test" if place < 2 else "train").as_dict())
        for place, group in enumerate(demo_groups[:8])
    ]
    Path("data.jsonl").write_text("\n".join(rows))
    project = {
        "dataset": "data.jsonl",
        "references": {"llama": {"model": str(tiny_models["llama"]), "dtype": "float32"}},
        "scorers": {"by_letters": {"rule": "marking:letters"},
                    "by_length": {"rule": "marking:length"}},
    }  # fmt: skip
    Path("mrpo.yaml").write_text(yaml.safe_dump(project))
    written(here, RECIPE, ROUNDS)
    plan = mrpo("round recipe.yaml --rounds 2 --output rounds/a --dry-run").out
    assert re.search(r"2 +a-round-1 +6 +24 +a-round-1 +llama,a-round-1", plan)
    assert "marking:letters, marking:length; measured on 2 prompts" in plan
    assert not Path("rounds").exists()
    made = mrpo("round recipe.yaml --rounds 1 --output rounds/a")
    assert "marking:length (held out)" in made.out
    assert "mrpo report rounds/a/round-1/run" in made.out
    mrpo("report rounds/a/round-1/run")
    wrong = mrpo("round recipe.yaml --rounds 1 --output rounds/a --set beta=3", 2)
    assert "beta was 1.0, is now 3" in wrong.err
    missing = mrpo("round recipe.yaml --output b --set score=nobody", 2)
    assert "no scorer is named 'nobody'" in missing.err
