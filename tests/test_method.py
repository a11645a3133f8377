"""`--loss NAME`: presets, refusals, recipes, and the combination of cached numbers."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from trained import NAMES

from mrpo_tools.config import Recipe, load_recipe
from mrpo_tools.errors import UsageError
from mrpo_tools.evaluation.evaluate import evaluate
from mrpo_tools.maths import objectives
from mrpo_tools.maths.judgements import Judgements
from mrpo_tools.methods.combination import Combination, combine
from mrpo_tools.methods.method import LOSSES, describe, resolve_method
from mrpo_tools.methods.tensors import look_up
from mrpo_tools.runs.run import load_run
from mrpo_tools.training.prepare import prepare
from mrpo_tools.training.train import train

ROOT = Path(__file__).parent.parent


def method(loss: str, count: int = 3, scores: bool = True, **words):
    sampler = {"behaviour": NAMES[0]} if loss in ("rlhf", "kd") else {}
    return resolve_method(Recipe(loss=loss, refs=NAMES[:count], **(sampler | words)), scores=scores)


def test_presets_are_dpo_after_a_combination():
    assert method("mrpo").row is objectives.TABLE["dpo"]
    assert method("mrpo").combination == Combination("harmonic", "confidence", "adaptive", 0.1)
    assert method("mean_ref").combination == Combination("geometric", "uniform", "adaptive", 0.1)
    assert method("multi_dpo").combination.combine == "separate"
    assert method("mpo").combination == method("mrpo").combination
    assert method("dpo", 1).combination.trust_region == "none"
    assert method("rlhf").combination == Combination("geometric", "uniform", "none", 0.1)
    assert method("kd").combination == Combination("separate", "uniform", "adaptive", 0.1)


@pytest.mark.parametrize("loss", ["inpo", "mnpo"])
def test_earlier_policies_share_what_reference_1_leaves(loss):
    """MNPO's published code: η 0.0075 on means over tokens, a third for the first reference."""
    for count, weights in ((1, [1.0]), (2, [1 / 3, 2 / 3]), (3, [1 / 3, 1 / 3, 1 / 3])):
        resolved = method(loss, count)
        assert resolved.row is objectives.TABLE["ipo"]
        assert resolved.hyper["beta"] == 0.0075
        assert resolved.hyper["length_normalized"] is True
        assert resolved.combination.fixed_weights == pytest.approx(weights)
        assert (resolved.combination.combine, resolved.combination.weights) == (
            "geometric",
            "fixed",
        )
        assert resolved.combination.trust_region == "none"
    own = method(loss, 2, fixed_weights=[0.9, 0.1], beta=0.1, length_normalized=False)
    assert own.combination.fixed_weights == [0.9, 0.1]
    assert own.hyper["beta"] == 0.1
    assert own.hyper["length_normalized"] is False


def test_a_pair_of_a_larger_group_can_have_weights_and_radius_of_its_own():
    """By default they are the group's: spread over 6 pairs, mean radius ε/4. With `top_bottom` 1
    the oracle's on the two alone: α from one difference, a mean radius of ε/2."""
    logps = torch.tensor([[[-10.0, -12.0], [-20.0, -13.0], [-30.0, -30.0], [-11.0, -19.0]]])
    scores = torch.tensor([[9.0, 5.0, 4.0, 1.0]])
    judged = Judgements(torch.ones(1, 4, dtype=torch.bool), scores, None)
    whole, own = (
        combine(logps.double(), each.sides(judged).mask, each.combination)
        for each in (
            method("mrpo", 2, epsilon_max=0.4),
            method("mrpo", 2, epsilon_max=0.4, chosen="top_bottom", top_bottom=1),
        )
    )
    assert own.weights[0].tolist() == pytest.approx([1 / 8, 7 / 8])  # |−10+11| and |−12+19|
    assert own.radius[0, [0, 3]].tolist() == pytest.approx([0.4 * 22 / 52, 0.4 * 30 / 52])
    spreads = [sum(abs(a - b) for a, b in itertools.combinations(row, 2)) for row in logps[0].T]
    assert whole.weights[0].tolist() == pytest.approx([float(x / sum(spreads)) for x in spreads])
    assert float(whole.radius.mean()) == pytest.approx(0.4 / 4)


def test_w_mpo_at_its_defaults_is_mpo_within_half_a_percent():
    """Scores of 1 to 10: the bonus is β·a·|δ| ≤ 0.01·0.1·9; Eq. 7 as printed is not."""
    generator = torch.Generator().manual_seed(0)
    shape = (500, 4)
    draw = functools.partial(torch.rand, shape, generator=generator, dtype=torch.float64)
    batch = objectives.Batch(
        policy_logps=-100 * draw(), reference_logps=-100 * draw(), lengths=torch.full(shape, 50),
        scores=(1 + 9 * draw()).round(), chosen=None, mask=torch.ones(shape, dtype=torch.bool),
    )  # fmt: skip
    usable = objectives.usable("mpo", batch)
    mpo, near, literal = (
        objectives.compute(name, batch, **hyper)[usable]
        for name, hyper in (("mpo", {}), ("w_mpo", {}), ("w_mpo", {"deviation_scale": 10.0}))
    )
    assert float(((near - mpo) / mpo).abs().max()) < 0.005
    assert float(((literal - mpo) / mpo).abs().max()) > 0.1


def test_words_override_the_preset():
    words = {"combine": "geometric", "weights": "uniform", "trust_region": "fixed",
             "epsilon_max": 0.5}  # fmt: skip
    assert method("mrpo", **words).combination == Combination(**words)
    assert method("mpo", chosen="top_bottom", top_bottom=1).hyper == {
        "beta": 0.01, "chosen": "top_bottom", "top_bottom": 1, "seed": None,
    }  # fmt: skip


REFUSED = [
    ({"loss": "multi_dpo", "count": 1}, "multi_dpo needs two references or more, found 1"),
    ({"loss": "dpo", "count": 0}, "dpo needs a reference"),
    ({"loss": "plackett_luce", "scores": False},
     "plackett_luce needs scores; this data has only chosen and rejected"),
    ({"loss": "dpo", "deviation_scale": 0.1},
     "dpo takes scores into account only through pairs; deviation_scale has no meaning"),
    ({"loss": "mpo", "pairing": "all"}, "mpo compares sets, not pairs"),
    ({"loss": "dpo", "gamma": 1.0}, "dpo has no hyper-parameter gamma"),
    ({"loss": "dpo", "combine": "separate"}, "dpo takes one reference log-prob per response"),
    ({"loss": "multi_dpo", "combine": "harmonic"}, "multi_dpo keeps its references separate"),
    ({"loss": "simpo", "count": 0, "epsilon_max": 0.1}, "simpo has no reference in it"),
    ({"loss": "rlhf", "behaviour": None}, "rlhf trains on samples"),
    ({"loss": "dpo", "behaviour": "llama"}, "dpo does not ask who wrote a response"),
    ({"loss": "rlhf", "combine": "harmonic"}, "rlhf is held to each reference by a KL"),
    ({"loss": "kd", "count": 1}, "kd needs two references or more"),
    ({"loss": "nothing"}, "no loss is named 'nothing'"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[text for _, text in REFUSED])
def test_what_means_nothing_is_refused_with_what_to_use(words, message):
    with pytest.raises(UsageError, match=message.replace("(", r"\(")) as error:
        method(**words)
    assert error.value.hint or words["loss"] == "nothing"


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_described_and_its_own_hyper_parameters_are_accepted(loss):
    described = describe(loss)
    assert described.formula
    assert described.source
    combination = {"combine", "weights", "trust_region", "epsilon_max"}
    words = {key: value for key, value in described.defaults.items() if key not in combination}
    count = 3 if "no reference" not in described.needs else 0
    assert words.items() <= method(loss, count, **words).hyper.items()


def test_every_hyper_parameter_is_a_key_of_recipes():
    """With the objective's own default accepted, and unset by default: the objective decides."""
    own = set(objectives.HYPER_PARAMETERS) - set(objectives.COMMON)
    assert {key: Recipe.model_fields[key].default for key in own} == dict.fromkeys(own)
    for row in objectives.TABLE.values():
        assert Recipe(**{key: row.defaults[key] for key in own & row.defaults.keys()})


def test_accuracy_weights_come_from_held_out_groups(references, some_groups, cached, tmp_path):
    """Measured on the validation split, kept in the run, and used again by evaluate; the test
    split, which would give other numbers, has no say."""
    groups = [
        group.with_split(("train", "validation", "test")[index % 3])
        for index, group in enumerate(some_groups)
    ]
    recipe = Recipe(
        loss="mrpo", refs=NAMES, weights="accuracy", max_steps=1, per_device_train_batch_size=4
    )
    prepared = prepare(recipe, groups, cached, references)
    held_out = [group for group in groups if group.split == "validation"]
    tensors = look_up([cached.find(name) for name in NAMES], held_out)
    scores = [[response.score for response in group.responses] for group in held_out]
    judged = [oracle.Group(row, row, row, scores=row) for row in scores]
    shares = [
        np.nanmean(list(map(oracle.accuracies, table.tolist(), judged)))
        for table in tensors.logps.unbind(-1)
    ]
    assert prepared.method.combination.accuracies == pytest.approx(shares)
    train(recipe, groups, cached, references, tmp_path / "run")
    evaluation = evaluate(load_run(tmp_path / "run"), groups, cached).record.as_json()
    above = [max(share - 0.5, 0) for share in shares]
    expected = oracle.fixed_weights(above if sum(above) else [1, 1, 1])
    assert evaluation["combination"]["mean_weights"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"weights_split": "test"}, "'test': it is reported, and its labels would choose"),
        ({"weights_split": "train"}, "'train': it is trained on"),
        ({"weights_split": "all"}, "'all': it holds every group"),
        ({"split": "all"}, "'validation': it is trained on, as split: all is"),
        ({"eval_steps": 1, "eval_split": "validation"}, "'validation': it is reported"),
        (
            {"weights_split": "dev"},
            r"'dev', of which no group is there \(there are: test, train, v",
        ),
    ],
)
def test_weights_are_not_chosen_by_what_is_trained_on_or_reported(
    words, message, references, some_groups, cached
):
    """Each refusal says how to get a split that is neither."""
    groups = [
        group.with_split(("train", "validation", "test")[index % 3])
        for index, group in enumerate(some_groups)
    ]
    recipe = Recipe(**{"loss": "mrpo", "refs": NAMES, "weights": "accuracy", **words})
    with pytest.raises(UsageError, match=message) as error:
        prepare(recipe, groups, cached, references)
    assert "--validation-size 0.1" in error.value.hint


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_loads_and_means_something(path):
    recipe = Recipe(**load_recipe(path))
    assert resolve_method(recipe, scores=True).name == recipe.loss
