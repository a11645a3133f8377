"""Evaluation of runs and of ordinary models: by plain loops, intervals, what is missing."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from stores import logps_of, write_groups

from mrpo_tools.cache import Cache
from mrpo_tools.cli import run
from mrpo_tools.config import Dataset, Recipe
from mrpo_tools.errors import CacheDamaged, CacheMissing, UsageError
from mrpo_tools.evaluation.evaluate import evaluate, evaluate_model, references_to_compute
from mrpo_tools.groups import Response, in_split
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.runs.record import EvaluationRecord, Metrics, RunRecord
from mrpo_tools.runs.run import load_run
from mrpo_tools.sources import load_groups
from mrpo_tools.training.train import train

NAMES = ["llama", "mistral", "qwen"]


@pytest.fixture(scope="module")
def groups(some_groups):
    """A third of the groups is held out."""
    splits = ("test", "train", "train")
    return [group.with_split(splits[n % 3]) for n, group in enumerate(some_groups)]


@pytest.fixture(scope="module")
def held_out(groups):
    """The groups that are held out."""
    return in_split(groups, "test")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, references, groups, cached) -> Path:
    path = tmp_path_factory.mktemp("evaluate") / "run"
    recipe = Recipe(loss="mrpo", refs=NAMES, max_steps=4, learning_rate=1e-3)
    train(recipe, groups, cached, references, path)
    return path


@pytest.fixture(scope="module")
def record(trained, groups, cached):
    return evaluate(load_run(trained), groups, cached).record


def shares(groups, reward) -> list[float]:
    """Each group's share of right pairs by a reward of (response id, response); none left out."""
    accuracies = []
    for group in groups:
        values = [reward(*pair) for pair in zip(group.response_ids, group.responses, strict=True)]
        scores = [response.score for response in group.responses]
        places = range(len(scores))
        pairs = [values[a] > values[b] for a in places for b in places if scores[a] > scores[b]]
        accuracies += [sum(pairs) / len(pairs)] if pairs else []
    return accuracies


def test_no_record_of_a_run_has_a_key_of_no_field(trained, record):
    """What is written is what the records document."""
    written = EvaluationRecord.read(trained / "evaluation/test.json")
    assert written == record
    parts = (RunRecord.read(trained / "run.json"), Metrics.read(trained / "metrics.json"), written)
    assert [part.model_extra for part in parts] == [{}] * 3


def test_accuracies_and_intervals_by_a_plain_loop(record, trained, held_out, cached):
    """The four and the others; their intervals are scipy's within the scatter of resampling."""
    policy = logps_of(Cache(trained / "evaluation"), "policy")
    first = logps_of(cached, "llama")
    rows = Cache(trained / "evaluation").find("policy").table().to_pylist()
    tokens = {row["response_id"]: row["num_tokens"] for row in rows}
    assert len(set(tokens.values())) > 1
    expected = {
        "accuracies_logp": shares(held_out, lambda key, _: policy[key]),
        "accuracies_logp_per_token": shares(held_out, lambda key, _: policy[key] / tokens[key]),
        "accuracies_logp_step0": shares(held_out, lambda key, _: first[key]),
        "accuracies_reference_1": shares(held_out, lambda key, _: policy[key] - first[key]),
        "accuracies_longer": shares(held_out, lambda _, response: len(response.content.encode())),
    }
    for name, values in expected.items():
        assert getattr(record, name) == pytest.approx(np.mean(values)), name
        interval = scipy.stats.bootstrap(
            (values,), np.mean, n_resamples=5000, method="percentile", rng=0
        ).confidence_interval
        assert getattr(record.intervals, name) == pytest.approx(tuple(interval), abs=0.03), name
    for k, name in enumerate(NAMES):
        logps = logps_of(cached, name)
        alone = np.mean(shares(held_out, lambda key, _, logps=logps: logps[key]))
        assert record.reference_accuracies["summed"][k] == pytest.approx(alone)
        low, high = record.intervals.reference_accuracies["summed"][k]
        assert low <= alone <= high


def test_how_far_the_policy_moved(record, trained, held_out, cached):
    """The mean over responses of |ℓ − ℓ before| / tokens, by a plain loop."""
    rows = Cache(trained / "evaluation").find("policy").table().to_pylist()
    first = logps_of(cached, "llama")
    held = {key for group in held_out for key in group.response_ids}
    apart = [abs(row["logp"] - first[row["response_id"]]) / row["num_tokens"]
             for row in rows if row["response_id"] in held]  # fmt: skip
    assert record.moved_nats_per_token == pytest.approx(np.mean(apart))
    assert record.hardly_moved is None
    still = record.model_copy(update={"moved_nats_per_token": 0.001})
    assert "hardly moved: 0.001 nats a token" in still.hardly_moved
    assert still.model_copy(update={"model": "a model"}).hardly_moved is None


def test_a_tie_is_no_wrong_answer():
    """0 of 0 margin is a tie of all pairs; 0 with a margin is every pair wrong."""
    tied = {"accuracies_step0": 0.0, "margins_step0": 0.0}
    assert EvaluationRecord.model_validate(tied).untrained_is_tied
    assert not EvaluationRecord.model_validate({**tied, "margins_step0": -0.5}).untrained_is_tied
    assert not EvaluationRecord.model_validate({}).untrained_is_tied


def test_histograms_count_every_response(record, held_out):
    responses = sum(len(group.responses) for group in held_out)
    histograms = record.histograms
    assert [sum(counts) for counts in histograms.weights] == [len(held_out)] * 3
    assert [sum(counts) for counts in histograms.distances] == [responses] * 2
    mean_radius = 0.1 * len(held_out) / responses  # each group's radii sum to ε_max
    assert histograms.mean_radius == pytest.approx(mean_radius)
    assert np.mean(histograms.clipped) == pytest.approx(record.combination.clipped_fraction)
    assert all(seconds > 0 for seconds in record.precompute_seconds)


def test_a_cached_model_is_its_own_reference(references, groups, cached):
    """Reference 1 evaluated as a model: no reward against itself, its own accuracy as log-prob."""
    record = evaluate_model("llama", references["llama"], groups, cached, NAMES).record
    assert record.accuracies_reference_1 == 0.0
    assert record.accuracies == record.accuracies_step0
    assert record.accuracies_logp == record.reference_accuracies["summed"][0]
    assert not (cached.path / "evaluation").exists()


def test_another_model_is_scored_beside_the_references(references, groups, held_out, cached):
    """The model qwen against reference llama: pairs by the difference of two cached numbers."""
    record = evaluate_model("model", references["qwen"], groups, cached, ["llama"]).record
    qwen, llama = logps_of(cached, "qwen"), logps_of(cached, "llama")
    expected = np.mean(shares(held_out, lambda key, _: qwen[key] - llama[key]))
    assert record.accuracies == pytest.approx(expected)
    assert record.accuracies_reference_1 == pytest.approx(expected)
    assert {store.name for store in cached.references()} == set(NAMES)
    alone = evaluate_model("model", references["qwen"], groups, cached).record
    expected = np.mean(shares(held_out, lambda key, _: qwen[key]))
    assert alone.accuracies == alone.accuracies_logp == pytest.approx(expected)
    assert not {"accuracies_step0", "accuracies_reference_1"} & set(alone.as_json())


def test_the_cache_of_evaluated_models_is_no_foreign_one(
    references, groups, cached, tmp_path, capsys
):
    """`verify` does not take its files for another program's, and it is mended as it is told."""
    cache = Cache(shutil.copytree(cached.path, tmp_path / "a cache"))
    shutil.rmtree(cache.path / "evaluation", ignore_errors=True)
    first = evaluate_model("model", references["qwen"], groups, cache).record
    assert run(["cache", "verify", "--cache", str(cache.path)]) == 0
    assert capsys.readouterr().err == ""
    part = next((cache.path / "evaluation").rglob("part-*.parquet"))
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(CacheDamaged, match=part.name) as raised:
        evaluate_model("model", references["qwen"], groups, cache)
    assert run(shlex.split(raised.value.hint)[1:]) == 0
    assert not part.exists()
    assert evaluate_model("model", references["qwen"], groups, cache).record == first


def test_what_cannot_be_evaluated(trained, groups, cached):
    """No group in the split; groups that no reference has scored, and all of these are named."""
    with pytest.raises(UsageError, match="no group is in split 'dev'"):
        evaluate(load_run(trained), groups, cached, "dev")
    other = [replace(group, prompt=(replace(group.prompt[-1], content="Hm?"),)) for group in groups]
    with pytest.raises(CacheMissing, match=r"'llama'.*\n.*'mistral'.*\n.*'qwen'") as caught:
        evaluate(load_run(trained), other, cached)
    assert "--precompute, or compute them first: mrpo precompute --ref llama,mistral,qwen" in (
        caught.value.hint)  # fmt: skip


def test_references_are_scored_as_they_were(references, cached):
    """The project's words where they give the identity, else those that the cache recorded."""
    store = cached.find("llama")
    assert references_to_compute([str(store)], cached, references) == {"llama": references["llama"]}
    changed = {"llama": references["llama"].model_copy(update={"max_length": 64})}
    assert references_to_compute([str(store)], cached, changed)["llama"].max_length is None
    assert references_to_compute(["llama"], cached, changed) == changed


def test_own_reward_is_asked_of_what_training_saw(groups, cached, references, tmp_path):
    """`top_bottom 1` trains on the best and the worst: r is that of those two, in one trust region.

    By a plain loop: radii from the two references' sums over the two, ε_max 0.5; then Eq. 8, 10, 7.
    """
    names = ["llama", "qwen"]
    groups = [g for g in groups if len({r.score for r in g.responses}) == len(g.responses)]
    assert any(len(group.responses) > 2 for group in groups if group.split == "test")
    path = tmp_path / "run"
    recipe = Recipe(loss="mpo", refs=names, chosen="top_bottom", top_bottom=1, epsilon_max=0.5,
                    max_steps=1)  # fmt: skip
    train(recipe, groups, cached, references, path)
    record = evaluate(load_run(path), groups, cached).record
    logps = [logps_of(cached, name) for name in names]
    policy = logps_of(Cache(path / "evaluation"), "policy")
    right = []
    for group in in_split(groups, "test"):
        scores = [response.score for response in group.responses]
        ends = [scores.index(max(scores)), scores.index(min(scores))]
        first, second = ([of[group.response_ids[i]] for i in ends] for of in logps)
        sums = [abs(a + b) for a, b in zip(first, second, strict=True)]
        spreads = [abs(best - worst) for best, worst in (first, second)]
        weights = [spread / sum(spreads) for spread in spreads]
        rewards = []
        for place, a, b, size in zip(ends, first, second, sums, strict=True):
            radius = 0.5 * size / sum(sums)
            b = min(max(b, (1 + radius) * a), (1 - radius) * a)
            r = -math.log(weights[0] * math.exp(-a) + weights[1] * math.exp(-b))
            rewards.append(policy[group.response_ids[place]] - r)
        right.append(rewards[0] > rewards[1])
    assert len(right) == record.groups
    assert record.accuracies == pytest.approx(np.mean(right))
    assert record.top1 == pytest.approx(np.mean(right))


def test_groups_without_a_pair_give_null_not_nan(trained, groups, cached, tmp_path):
    tied = [
        replace(group, responses=tuple(Response(each.content, 1.0) for each in group.responses))
        for group in groups
    ]
    result = evaluate(load_run(trained), tied, cached)
    stored = json.loads(result.path.read_text(), parse_constant=pytest.fail)
    assert stored["accuracies"] is None
    assert stored["reference_accuracies"]["summed"] == [None] * 3
    assert stored["intervals"]["accuracies"] is None
    evaluate(load_run(trained), groups, cached)  # puts the true numbers back


@pytest.fixture
def project(tmp_path, monkeypatch, groups, tiny_models) -> Path:
    monkeypatch.chdir(tmp_path)
    write_groups(Path("data.jsonl"), groups)
    write_groups(Path("other.jsonl"), groups[:6], prompt="Another prompt?")
    words = [f"  {name}: {{model: {tiny_models[name]}, dtype: float32}}" for name in NAMES[:2]]
    Path("mrpo.yaml").write_text("dataset: data.jsonl\nreferences:\n" + "\n".join(words) + "\n")
    return tmp_path


def test_the_command_on_models(project, tiny_models, capsys):
    """Without numbers it says which command makes them; with --precompute it makes them."""
    qwen = str(tiny_models["qwen"])
    assert run(["evaluate", qwen]) == 3
    assert "mrpo precompute --ref llama,mistral" in capsys.readouterr().err
    assert run(["evaluate", qwen, "--precompute"]) == 0
    out = capsys.readouterr().out
    for label in (
        "own reward", "own reward, reference 1", "against reference 1", "log-prob",
        "log-prob per token",
        "reference llama alone", "reference mistral alone", "always the longer",
        "not comparable between methods",
    ):  # fmt: skip
        assert label in out
    assert run(["evaluate", "mistral", "--refs", "llama"]) == 0
    out = capsys.readouterr().out
    tied = next(line for line in out.splitlines() if line.startswith("own reward, reference 1"))
    assert tied.endswith("– (every pair is tied)")
    assert run(["evaluate", "mistral", "--refs", "llama", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["model"] == "mistral"
    assert printed["references"] == ["llama"]
    assert run(["evaluate", qwen, "--refs", ""]) == 0
    assert "reference 1" not in capsys.readouterr().out


def test_the_command_on_other_data(project, trained, groups, cached, capsys):
    """A run on data its references have not seen: --precompute scores it under their identities."""
    assert run(["evaluate", str(trained), "--dataset", "other.jsonl", "--split", "all",
                "--cache", str(cached.path)]) == 3  # fmt: skip
    assert run(["evaluate", str(trained), "--refs", "llama"]) == 2
    assert "leave --refs out" in capsys.readouterr().err


def test_other_data_are_kept_apart(project, references, groups, cached, tmp_path, capsys):
    """The table's file is of the run's own data; less of it, or other files, have names of theirs.

    The same words, though, even when they are spelled out, are the run's own.
    """
    data = tmp_path / "data.jsonl"
    words = Dataset(source=str(data))
    recipe = Recipe(loss="dpo", refs=["llama"], max_steps=1)
    train(recipe, groups, cached, references, tmp_path / "run", words)
    evaluations = tmp_path / "run" / "evaluation"
    common = ["evaluate", "run", "--cache", str(cached.path)]
    assert run(common) == 0
    before = (evaluations / "test.json").read_bytes()
    record = json.loads(before)
    ids = sorted(group.group_id for group in groups if group.split == "test")
    assert record["groups_hash"] == hashlib.sha256("\n".join(ids).encode()).hexdigest()
    assert record["dataset"]["source"] == str(data)
    assert record["prompts_trained_on"] == 0
    assert run([*common, "--limit", "8"]) == 0
    assert "not the run's own data" in capsys.readouterr().err
    Path("copy.jsonl").write_bytes(data.read_bytes())
    assert run([*common, "--dataset", "copy.jsonl"]) == 0
    names = {path.name: json.loads(path.read_text()) for path in evaluations.glob("*.json")}
    assert len(names) == 3
    assert (evaluations / "test.json").read_bytes() == before
    copied = names[f"test-{record['groups_hash'][:8]}.json"]
    assert copied["accuracies_logp"] == record["accuracies_logp"]
    capsys.readouterr()
    assert run([*common, "--dataset", "data.jsonl"]) == 0
    assert "not the run's own" not in capsys.readouterr().err
    assert len(list(evaluations.glob("*.json"))) == 3


def test_what_was_trained_on_is_told_of_other_data(
    project, references, groups, cached, tmp_path, capsys
):
    """The same groups with their splits the other way round: all that is measured was trained on;
    where the run's own data are gone, nobody knows."""
    recipe = Recipe(loss="dpo", refs=["llama"], max_steps=1)
    words = Dataset(source=str(tmp_path / "data.jsonl"))
    train(recipe, groups, cached, references, tmp_path / "run", words)
    swapped = [group.with_split("test" if group.split == "train" else "train") for group in groups]
    lines = [json.dumps(group.as_dict()) for group in swapped]
    Path("swapped.jsonl").write_text("\n".join(lines))
    common = ["evaluate", "run", "--cache", str(cached.path), "--json"]
    other = [*common, "--dataset", "swapped.jsonl"]
    trained = len({group.prompt_id for group in groups if group.split == "train"})
    told = f"{trained} prompts of split test are among those that run was trained on"
    for arguments, count, text in ((common, 0, None), (other, trained, told)):
        assert run(arguments) == 0
        said = capsys.readouterr()
        assert json.loads(said.out)["prompts_trained_on"] == count
        assert text is None or text in said.err
        assert text is not None or "are among those" not in said.err
    Path("data.jsonl").unlink()
    assert run(other) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["prompts_trained_on"] is None
    assert "cannot be read" in said.err


def test_precompute_keeps_to_the_identities_of_the_run(
    project, references, groups, tiny_models, capsys
):
    cache = Cache(project / "cache")
    precompute({name: references[name] for name in ("llama", "qwen")}, groups, cache, "data")
    recipe = Recipe(loss="mrpo", refs=["llama", "qwen"], max_steps=1)
    train(recipe, groups, cache, references, project / "run")
    assert run(["evaluate", "run", "--dataset", "other.jsonl", "--split", "all", "--precompute",
                "--json"]) == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out)["groups"] > 0
    assert len(cache.references()) == 2


def test_a_policy_as_a_reward_model_by_subset(tmp_path, references, groups, cached, capsys):
    """RewardBench's rows: pairs and best of four of π − reference 1 in each subset, by hand."""
    shutil.copytree(cached.path, tmp_path / "cache")
    cache = Cache(tmp_path / "cache")
    recipe = Recipe(loss="dpo", refs=["llama"], max_steps=4, learning_rate=1e-2)
    train(recipe, groups, cache, references, tmp_path / "run")
    bench = tmp_path / "bench.jsonl"
    rows = [
        {"id": str(n), "subset": ("Focus", "Math", "Ties")[n % 3], "prompt": f"Question {n}?",
         "chosen": [f"the answer {n}"], "rejected": [f"no {n}", f"{n} or so", "?" * (n + 2)]}
        for n in range(15)
    ]  # fmt: skip
    bench.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ["evaluate", str(tmp_path / "run"), "--dataset", str(bench), "--split", "all",
            "--cache", str(cache.path), "--precompute"]  # fmt: skip
    assert run([*line, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    policy = logps_of(Cache(tmp_path / "run" / "evaluation"), "policy")
    first = logps_of(cache, "llama")
    right: dict[str, list] = {"Focus": [], "Math": [], "Ties": []}
    best: dict[str, list] = {"Focus": [], "Math": [], "Ties": []}
    for group in load_groups(bench).groups:
        good, *bad = [policy[key] - first[key] for key in group.response_ids]
        part = group.source_id.partition("/")[0]
        right[part].append(np.mean([good > each for each in bad]))
        best[part].append(good > max(bad))
    assert list(printed["parts"]) == sorted(right)
    for name, part in printed["parts"].items():
        assert part["groups"] == 5
        for metric, values in (("accuracies", right), ("accuracies_reference_1", right),
                               ("top1", best)):  # fmt: skip
            assert part[metric] == pytest.approx(np.mean(values[name])), (name, metric)
            low, high = part["intervals"][metric]
            assert low <= part[metric] <= high
    assert len({part["accuracies"] for part in printed["parts"].values()}) > 1
    assert run(line) == 0
    assert "accuracy by part" in capsys.readouterr().out
