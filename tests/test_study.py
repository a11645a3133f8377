"""The study: its statistics by hand and by enumeration, planted effects, the harness made small."""

from __future__ import annotations

import itertools
import json
import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "bench" / "study"


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    """Its modules find each other by their own names, and leave none of them behind."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(STUDY))
    yield
    for name in set(sys.modules) - before:
        if str(STUDY) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_a_frontier_between_two_points_by_hand():
    """√1 = 1 and √4 = 2: at KL 2.25 half the way, from 5 to 7. The order of points is no matter."""
    from frontier import Point, score_at

    points = [Point(4.0, 7.0), Point(0.0, 4.0), Point(1.0, 5.0)]
    assert score_at(points, 2.25) == pytest.approx(6.0)
    assert score_at(points, 0.25) == pytest.approx(4.5)
    assert score_at(points, 1.0) == pytest.approx(5.0)
    assert score_at(points, 4.0) == pytest.approx(7.0)
    assert score_at([Point(-0.01, 4.0), Point(1.0, 5.0)], 0.25) == pytest.approx(4.5)


def test_a_frontier_ends_with_its_points():
    from frontier import Point, score_at

    points = [Point(1.0, 5.0), Point(4.0, 7.0)]
    assert score_at(points, 4.01) is None
    assert score_at(points, 0.99) is None
    assert score_at([], 1.0) is None


def test_sign_flips_are_enumerated():
    """The sums of ±3 ±2 ±1 are 6, 4, 2 and 0, and their opposites; four of eight reach 4."""
    from contrasts import sign_flip

    assert sign_flip([3.0, 2.0, -1.0]) == 0.5
    assert sign_flip([1.0] * 10) == 2 / 1024
    assert sign_flip([0.0, 0.0]) == 1.0
    assert sign_flip([0.1, 0.2, -0.3]) == 1.0


def test_sign_flips_are_scipys_permutations():
    import numpy as np
    import scipy.stats
    from contrasts import sign_flip

    rng = np.random.default_rng(3)
    for size in (5, 8):
        values = rng.normal(0.4, 1.0, size)
        exact = scipy.stats.permutation_test(
            (values,), np.mean, permutation_type="samples", n_resamples=10**6
        )
        assert sign_flip(values.tolist()) == pytest.approx(exact.pvalue)


def test_holm_is_over_the_family_that_is_tested():
    """p 0.02, 0.01, 0.2 of three: 2·0.02, 3·0.01, 0.2; each at least the one before: 0.04, 0.03.
    What is below the floor of replicates is in no family."""
    from contrasts import Contrast, as_family

    ps = {"a": 0.02, "b": 0.01, "c": 0.2, "few": None}
    made = as_family({name: Contrast(0.1, None, p, 6) for name, p in ps.items()})
    adjusted = {name: each.adjusted for name, each in made.items()}
    assert adjusted.pop("few") is None
    assert adjusted == pytest.approx({"a": 0.04, "b": 0.03, "c": 0.2})


def test_the_best_of_the_others_has_not_seen_the_replicate():
    """In replicate 3 the arm `lucky` is best by far, but on 1 and 2 it is the worse one."""
    from contrasts import best_of_others

    arms = {"steady": {1: 5.0, 2: 5.0, 3: 5.0, 4: 1.0}, "lucky": {1: 4.9, 2: 4.9, 3: 9.0}}
    assert best_of_others(arms) == {1: 4.9, 2: 4.9, 3: 5.0}


def planted(effects: dict[str, float], seeds: int, spread: float = 0.05) -> dict:
    """Runs of every arm of arms.yaml: a frontier 5 + √KL + effect, the same for all replicates but
    for a shift of each replicate and noise."""
    from arms import load_arms
    from results import Study

    arms, rng, runs = load_arms(), random.Random(0), []
    for seed in range(seeds):
        level = rng.gauss(5, 1)
        runs.append({"arm": "untrained", "learning_rate": 0.0, "seed": seed, "kl": 0.0,
                     "score": level})  # fmt: skip
        for arm in itertools.chain.from_iterable(arms.waves.values()):
            for place, rate in enumerate(arms.rates):
                kl = (0.5, 1.5, 4.0, 8.0)[place]
                score = level + kl**0.5 + effects.get(arm, 0.0) + rng.gauss(0, spread)
                runs.append({"arm": arm, "learning_rate": rate, "seed": seed, "kl": kl,
                             "score": score, "clipped": 0.4})  # fmt: skip
    return Study(arms, runs, {"command": "", "date": "", "versions": ""})


def test_a_planted_effect_is_found_and_its_size():
    """MRPO is 0.4 better on every frontier and MPO 0.4 worse; nothing else differs."""
    from claims import falsified, primary

    study = planted({"mrpo": 0.4, "geometric": 0.4, "mpo": -0.4}, seeds=10)
    made = primary(study)
    for kl in (1.0, 3.0):
        assert made["beats_dpo", kl].mean == pytest.approx(0.4, abs=0.1)
        assert made["beats_dpo", kl].adjusted == pytest.approx(2 / 1024 * 11)
        assert made["mpo", kl].mean == pytest.approx(-0.4, abs=0.1)
        assert made["harmonic", kl].mean == pytest.approx(0.0, abs=0.1)
        assert made["harmonic", kl].adjusted > 0.05
    assert falsified(study, "beats_dpo", made) == []
    assert len(falsified(study, "mpo", made)) == 2
    assert falsified(study, "regulariser", made) == []
    assert len(falsified(study, "rounds", made)) == 1


def test_a_placebo_as_good_as_mrpo_falsifies_it():
    from claims import falsified, primary

    study = planted({"mrpo": 0.4, "placebo": 0.36}, seeds=6)
    reasons = falsified(study, "beats_dpo", primary(study))
    assert len(reasons) == 2
    assert all("placebo" in words for _, words in reasons)


def test_noise_alone_shows_nothing():
    """No arm differs: no contrast is below 0.05, every claim that needs a gain is falsified."""
    from claims import CLAIMS, falsified, gate, primary

    study = planted({}, seeds=10)
    made = primary(study)
    assert min(each.adjusted for each in made.values()) > 0.05
    assert all(each.mean < 0.5 for each in gate(study).values())
    for name in ("beats_dpo", "radius", "mpo", "rounds", "regulariser"):
        assert name in CLAIMS
        assert falsified(study, name, made)


def test_few_replicates_are_not_tested():
    from claims import primary

    assert all(each.p is None for each in primary(planted({"mrpo": 1.0}, seeds=4)).values())


def test_an_arm_that_does_not_come_so_far_is_counted():
    study = planted({}, seeds=5)
    runs = [
        {**run, "kl": run["kl"] / 10} if run["arm"] == "mpo" and run["seed"] == 2 else run
        for run in study.runs
    ]
    short = type(study)(study.arms, runs, study.about)
    assert len(short.finished("mpo")) == 5
    assert sorted(short.scores("mpo", 1.0)) == [0, 1, 3, 4]


def test_a_step_follows_from_what_was_written_before_it():
    """After a wrong digit the next is right by it; a missing step, an extra or a word is not."""
    from tasks import LETTERS, OPERATIONS, STEPS, share_right

    letters = [LETTERS[place % len(LETTERS)] for place in range(STEPS)]
    right, digit = [], 3
    for letter in letters:
        digit = OPERATIONS[letter][digit]
        right.append(digit)
    prompt = f"{' '.join(letters)} : 3"
    words = list(map(str, right))
    assert share_right(prompt, " ".join(words)) == 1.0
    assert share_right(prompt, " ".join([*words, "1"])) == pytest.approx((STEPS - 1) / STEPS)
    assert share_right(prompt, " ".join(words[:-2])) == pytest.approx((STEPS - 2) / STEPS)
    assert share_right(prompt, "") == 0.0
    slipped = [(right[0] + 1) % 10]
    for letter in letters[1:]:
        slipped.append(OPERATIONS[letter][slipped[-1]])
    assert share_right(prompt, " ".join(map(str, slipped))) == pytest.approx((STEPS - 1) / STEPS)
    lost = " ".join(["?", *words[1:]])
    assert share_right(prompt, lost) == pytest.approx((STEPS - 2) / STEPS)


def test_every_operation_is_a_permutation():
    from tasks import OPERATIONS

    assert all(sorted(table) == list(range(10)) for table in OPERATIONS.values())


def test_every_arm_is_a_recipe_that_means_something():
    from arms import load_arms

    from mrpo_tools.methods.method import resolve_method

    arms = load_arms()
    for arm in itertools.chain.from_iterable(arms.waves.values()):
        resolve_method(arms.recipe(arm, 1e-3, 0), scores=True)


def test_the_page_is_what_its_results_say():
    from analyse import page
    from results import read_study

    docs = ROOT / "docs"
    prose = (docs / "study.in.md").read_text(encoding="utf-8")
    made = page(read_study(), read_study("split"), prose)
    assert made == (docs / "study.md").read_text(encoding="utf-8")
    assert "{{" not in made


TOY = """
common: {policy: base, finetuning: full, per_device_train_batch_size: 8, epsilon_max: 1.2,
         beta: 0.3, gradient_accumulation_steps: 1}
learning_rates: [1.0e-3]
round_one: {arm: dpo_base, learning_rate: 1.0e-3}
first:
  dpo_base: {loss: dpo, refs: [base]}
  wrong_ids: {loss: mrpo, refs: [base, wrong_left, oracle]}
  round_dpo: {loss: dpo, refs: [round_one], policy: round_one}
second:
  mpo: {loss: mpo, refs: [base]}
"""


@pytest.mark.long
def test_the_harness_makes_runs_and_goes_on_where_it_stopped(tmp_path):
    """Both rounds, controls, and a second call that has nothing left to do but what is new."""
    import run
    from arms import load_arms
    from replicate import Size

    (tmp_path / "arms.yaml").write_text(TOY, encoding="utf-8")
    arms, size = (
        load_arms(tmp_path / "arms.yaml"),
        Size(train=16, validation=4, test=6, steps=20, rows=64),
    )
    run.make(tmp_path, arms, [1], size, ["first"])
    results = tmp_path / "replicate-1" / "results"
    made = {path.name: path.read_bytes() for path in results.iterdir()}
    assert sorted(made) == ["dpo_base@0.001.json", "round_dpo@0.001.json", "untrained@0.json",
                            "wrong_ids@0.001.json"]  # fmt: skip
    untrained = json.loads(made["untrained@0.json"])
    assert abs(untrained["kl"]) < 1e-5
    (results / "wrong_ids@0.001.json").unlink()
    run.make(tmp_path, arms, [1], size, ["first", "second"])
    again = {path.name: path.read_bytes() for path in results.iterdir()}
    assert set(again) == {*made, "mpo@0.001.json"}
    for name in made:
        before, after = json.loads(made[name]), json.loads(again[name])
        for key in ("score", "kl", "clipped"):
            assert before.get(key) == after.get(key), (name, key)
    assert again["dpo_base@0.001.json"] == made["dpo_base@0.001.json"]


def test_what_is_sampled_has_the_products_log_probs(tmp_path):
    """Of a text that the data holds, both give one number; a draw's own sum is that of its ids."""
    import torch
    from replicate import Replicate, Size
    from sampled import answer_logps, draw, prompt_ids

    replicate = Replicate(tmp_path / "r", 2, Size(train=6, validation=2, test=2, steps=20, rows=64))
    groups = [group for group in replicate.groups if group.split == "train"]
    numbers = dict(zip(*replicate.cache.find("base").table().select(
        ["response_id", "logp"]).to_pydict().values(), strict=True))  # fmt: skip
    words = replicate.tokenizer.get_vocab()
    for group in groups:
        prompt = prompt_ids(replicate.tokenizer, [group.prompt[-1].content])
        for key, response in zip(group.response_ids, group.responses, strict=True):
            ids = torch.tensor([[words[word] for word in [*response.content.split(), "</s>"]]])
            mine = answer_logps(replicate.base, prompt, ids.repeat(len(prompt), 1))
            assert mine.tolist() == pytest.approx([numbers[key]] * len(prompt), abs=1e-4)
    ids = prompt_ids(replicate.tokenizer, replicate.prompts("test"))
    answers, logps = draw(replicate.base, ids, seed=5)
    assert torch.allclose(logps, answer_logps(replicate.base, ids, answers), atol=1e-3)
