"""Tasks of the language-model harness: a user's own tasks, a tiny policy before and after."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from made_up import made_up_cache, made_up_groups, made_up_run
from stores import write_groups
from transformers import AutoModelForCausalLM, AutoTokenizer

from mrpo_tools.cache import Cache
from mrpo_tools.config import Dataset, Recipe
from mrpo_tools.errors import UsageError
from mrpo_tools.evaluation.benchmarks import difference, measure_benchmarks, paired
from mrpo_tools.evaluation.harness import PRESETS, SHOTS, Harness, Measured, Wanted, hash_folder
from mrpo_tools.report.write import report
from mrpo_tools.runs.outcomes import Outcome, OutcomesRecord, every_outcome, outcomes_file
from mrpo_tools.runs.run import load_run
from mrpo_tools.sql import open_sql
from mrpo_tools.training.train import train

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own, of the libraries it uses

NAMES = ["llama", "mistral"]
ANIMALS = ["cat", "dog", "hen", "cow", "fox", "owl", "ant", "bee"]
CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{label}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: {version}}}
"""
WRITTEN = """
task: tiny_written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[label]}}}}"
generation_kwargs: {{until: ["e"], do_sample: false, max_gen_toks: 5}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
GROUP = """
group: tiny
task: [tiny_a, tiny_b]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
metadata: {version: 3.0}
"""


def write_tasks(folder: Path) -> Path:
    """Two tasks of several choices, of unequal size, their group, and one with written answers."""
    folder.mkdir()
    rows = [
        {"question": f"Which animal is number {n}?", "label": n % 3,
         "choices": [ANIMALS[(n + k) % 8] for k in (0, 3, 5)]}
        for n in range(26)
    ]  # fmt: skip
    for name, version, part in (("tiny_a", 1.0, rows[:18]), ("tiny_b", 2.0, rows[18:])):
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in part))
        text = CHOICE.format(name=name, data=data, version=version)
        (folder / f"{name}.yaml").write_text(text)
    (folder / "tiny.yaml").write_text(GROUP)
    (folder / "tiny_written.yaml").write_text(WRITTEN.format(data=folder / "tiny_b.jsonl"))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory, references, some_groups, cached) -> Path:
    """A directory with a cache, data, tasks and a run that was trained far."""
    pytest.importorskip("lm_eval")
    home = tmp_path_factory.mktemp("benchmarks")
    shutil.copytree(cached.path, home / "cache")
    splits = ("test", "train", "train")
    groups = [group.with_split(splits[n % 3]) for n, group in enumerate(some_groups)]
    write_groups(home / "data.jsonl", groups)
    write_tasks(home / "tasks")
    train(
        Recipe(loss="mrpo", refs=NAMES, max_steps=6, learning_rate=5e-2), groups,
        Cache(home / "cache"), references, home / "run",
        dataset=Dataset(source=str(home / "data.jsonl")),
    )  # fmt: skip
    return home


def wanted(world: Path, *tasks: str, **settings) -> Wanted:
    return Wanted(tasks=tasks, folder=world / "tasks", **settings)


@pytest.fixture(scope="module")
def record(world) -> OutcomesRecord:
    asked = wanted(world, "tiny", "tiny_written", chat=False)
    return measure_benchmarks(load_run(world / "run"), asked, Cache(world / "cache"))


def kept(folder: Path, task: str) -> dict:
    (path,) = folder.glob(f"{task}-*.json")
    return json.loads(path.read_text())


def by_hand(model: str | Path, rows: list[dict]) -> list[float]:
    """Whether the likeliest of the choices, after the question and a space, is the right one."""
    policy = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    right = []
    for row in rows:
        scores = []
        for choice in row["choices"]:
            context = tokenizer(row["question"])["input_ids"]
            ids = tokenizer(f"{row['question']} {choice}")["input_ids"]
            assert ids[: len(context)] == context
            with torch.no_grad():
                logps = policy(torch.tensor([ids])).logits[0].float().log_softmax(-1)
            scores.append(sum(logps[n - 1, ids[n]].item() for n in range(len(context), len(ids))))
        right.append(float(int(np.argmax(scores)) == row["label"]))
    return right


def test_the_numbers_by_plain_loops(world, record):
    """Accuracy of the base by hand; the group's difference and its error by numpy and scipy."""
    outcome, written = record.outcomes
    base = record.before(outcome)
    assert (outcome.scorer, outcome.kind, outcome.key) == ("tiny", "benchmark", "tiny")
    rows = [
        json.loads(line)
        for name in ("tiny_a", "tiny_b")
        for line in (world / "tasks" / f"{name}.jsonl").read_text().splitlines()
    ]
    assert base.mean == pytest.approx(
        np.mean(by_hand(load_run(world / "run").record.policy.model, rows))
    )
    after = kept(world / "run" / "outcomes" / "harness", "tiny")["measured"]
    before = kept(world / "cache" / "harness", "tiny")["measured"]
    parts = [
        np.subtract(after["examples"][name]["acc,none"], before["examples"][name]["acc,none"])
        for name in ("tiny_a", "tiny_b")
    ]
    assert any(part.any() for part in parts), "the two policies answer alike: nothing is tested"
    every = np.concatenate(parts)
    assert outcome.gain == pytest.approx(every.mean()) == pytest.approx(outcome.mean - base.mean)
    within = sum(((part - part.mean()) ** 2).sum() for part in parts) / (len(every) - 2)
    error = math.sqrt(within / len(every))
    assert outcome.settings["gain_stderr"] == pytest.approx(error)
    low, high = outcome.intervals["gain"]
    assert (low, high) == pytest.approx(scipy.stats.norm.interval(0.95, every.mean(), error))
    assert outcome.settings["better"] == (every > 0).sum()
    assert outcome.settings["worse"] == (every < 0).sum()
    assert outcome.prompts == len(every) == 26
    assert written.prompts == 8
    assert written.mean == after_written(world)


def after_written(world: Path) -> float:
    """The share of right written answers, by the harness's own record."""
    columns = kept(world / "run" / "outcomes" / "harness", "tiny_written")["measured"]["examples"]
    return pytest.approx(np.mean(columns["tiny_written"]["exact_match,none"]))


def test_the_numbers_are_the_harness_s_own(world, record):
    """`--model hf` with the adapter as `peft`, loaded by the harness from the files."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    run = load_run(world / "run")
    policy = run.trained_policy
    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": policy.model, "peft": str(policy.adapter), "dtype": "float32"},
        tasks=["tiny"], device="cpu", batch_size=2,
        task_manager=TaskManager(include_path=str(world / "tasks")),
    )  # fmt: skip
    ours = kept(world / "run" / "outcomes" / "harness", "tiny")["measured"]
    assert ours["value"] == theirs["groups"]["tiny"]["acc,none"]
    assert ours["stderr"] == pytest.approx(theirs["groups"]["tiny"]["acc_stderr,none"])
    for name in ("tiny_a", "tiny_b"):
        right = [row["acc"] for row in theirs["samples"][name]]
        assert ours["examples"][name]["acc,none"] == right


def test_what_is_recorded(world, record):
    """Version of the task and of the harness, shots and template; and the policy in the key."""
    import lm_eval

    outcome = record.outcomes[0]
    said = outcome.settings
    assert (said["harness"], said["task_version"]) == (lm_eval.__version__, "3.0")
    assert (said["shots"], said["metric"], said["chat_template"]) == (0, "acc,none", False)
    own = kept(world / "run" / "outcomes" / "harness", "tiny")["about"]
    base = kept(world / "cache" / "harness", "tiny")["about"]
    assert base["policy"] == load_run(world / "run").record.policy_identity != own["policy"]
    assert own["tasks_hash"] == hash_folder(world / "tasks")
    assert {**own, "policy": ""} == {**base, "policy": ""}


def test_nothing_is_asked_twice(world, record):
    """A number that is changed in the file comes back; another setting is another file."""
    run, cache = load_run(world / "run"), Cache(world / "cache")
    folder = world / "run" / "outcomes" / "harness"
    (path,) = folder.glob("tiny_written-*.json")
    saved = path.read_text()
    changed = json.loads(saved)
    changed["measured"]["value"] = 0.875
    path.write_text(json.dumps(changed))
    again = measure_benchmarks(run, wanted(world, "tiny_written", chat=False), cache)
    assert next(o.mean for o in again.outcomes if o.scorer == "tiny_written") == 0.875
    assert [o.scorer for o in again.outcomes] == ["tiny_written", "tiny"]
    path.write_text(saved)
    chat = measure_benchmarks(run, wanted(world, "tiny_written", limit=3), cache)
    first = chat.outcomes[0]
    assert (first.prompts, first.settings["chat_template"]) == (3, True)
    assert first.identity != record.outcomes[1].identity
    assert len(list(folder.glob("tiny_written-*.json"))) == 2
    record.write(outcomes_file(run.path, "benchmarks"))


def test_other_examples_are_refused(world, record):
    """The base was asked other data: the difference would be of nothing."""
    (path,) = (world / "cache" / "harness").glob("tiny-*.json")
    saved = path.read_text()
    changed = json.loads(saved)
    changed["measured"]["examples"]["tiny_b"]["doc_hash"][2] = "other"
    path.write_text(json.dumps(changed))
    run, asked = load_run(world / "run"), wanted(world, "tiny", chat=False)
    with pytest.raises(UsageError, match="data of task tiny_b have changed"):
        measure_benchmarks(run, asked, Cache(world / "cache"))
    path.write_text(saved)


def test_what_cannot_be_asked(world):
    """Before any model is loaded: a task of nobody's is told with the nearest, a folder that is
    not there."""
    run, cache = load_run(world / "run"), Cache(world / "cache")
    unknown = wanted(world, "tiny_writen")
    with pytest.raises(UsageError, match="no task 'tiny_writen'") as caught:
        measure_benchmarks(run, unknown, cache)
    assert "tiny_written" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="no directory"):
        Harness(Wanted(("tiny",), folder=world / "nowhere"))


def test_the_command(world, record, monkeypatch, mrpo):
    """A table with the difference, and JSON."""
    monkeypatch.chdir(world)
    line = "evaluate run --harness tiny --harness-tasks tasks --harness-plain"
    told = mrpo(line)
    outcome = record.outcomes[0]
    assert "tiny, acc,none, 0-shot" in told.out
    assert f"{outcome.settings['better']}/{outcome.settings['worse']} of 26" in told.out
    printed = json.loads(mrpo(f"{line} --json").out)
    assert printed["benchmarks"]["outcomes"][0]["gain"] == pytest.approx(outcome.gain)
    assert "--harness TASK" in mrpo("evaluate run --harness-shots 3", 2).err


def test_a_preset_has_shots_for_each_of_its_tasks():
    """MRPO, Tables 4 and 8: six tasks."""
    assert set(PRESETS["glu"]) == set(SHOTS)
    assert Wanted(("glu", "gsm8k", "piqa")).names == (*PRESETS["glu"], "piqa")
    assert Wanted(("glu",)).shots_of("hellaswag") == 10
    assert Wanted(("glu",), shots=2).shots_of("hellaswag") == 2
    assert Wanted(("piqa",)).shots_of("piqa") is None


def measured(**examples: list[float]) -> Measured:
    """Made-up results of tasks whose metric is acc."""
    every = [value for values in examples.values() for value in values]
    return Measured(
        metric="acc,none", value=float(np.mean(every)), metrics={}, higher_is_better={},
        versions={}, shots={},
        examples={
            name: {"doc_id": [*range(len(values))], "doc_hash": ["h"] * len(values),
                   "acc,none": values}
            for name, values in examples.items()
        },
    )  # fmt: skip


def test_the_paired_error_covers_in_95_of_100():
    """Two policies that agree mostly: the paired interval covers the truth as often as it says,
    and is far shorter than that of two means taken apart."""
    rng = np.random.default_rng(3)
    covered, lengths, apart = 0, [], []
    for _ in range(200):
        easy = rng.random(250)
        before = (rng.random(250) < easy).astype(float)
        flips = rng.random(250) < 0.12
        after = np.where(flips, (rng.random(250) < 0.7).astype(float), before)
        truth = 0.12 * (0.7 - 0.5)
        parts = paired("t", measured(t=list(after)), measured(t=list(before)))
        mean, error = difference(parts)
        covered += abs(mean - truth) < 1.96 * error
        lengths.append(error)
        apart.append(math.hypot(after.std(ddof=1), before.std(ddof=1)) / math.sqrt(250))
    assert error == pytest.approx(scipy.stats.sem(after - before))
    assert 0.92 < covered / 200 < 0.98
    assert np.mean(lengths) < np.mean(apart) / 1.8


def test_one_example_has_no_error():
    assert difference([[(1.0, 0.0)], [(0.0, 0.0)]]) == (0.5, None)


def test_a_number_that_is_no_mean_has_no_difference():
    after = measured(t=[0.0, 1.0]).model_copy(update={"value": 0.7})
    with pytest.raises(ValueError, match="no mean over examples"):
        paired("t", after, measured(t=[0.0, 1.0]))


def test_a_benchmark_is_an_outcome_like_others(tmp_path, mrpo):
    """Without the harness: a record that lies there is in metrics, compare's table and the page."""
    for seed in (1, 2):
        for loss, mean in (("dpo", 0.5), ("mrpo", 0.625)):
            path = made_up_run(
                tmp_path / f"{loss}-{seed}", loss, NAMES[: 1 + (loss == "mrpo")], seed
            )
            outcome = Outcome(
                scorer="arc_easy", kind="benchmark", mean=mean, gain=mean - 0.25, prompts=400,
                settings={"metric": "acc,none", "shots": 25}, identity="i",
                intervals={"mean": (mean - 0.1, mean + 0.1)},
            )  # fmt: skip
            base = outcome.model_copy(update={"mean": 0.25, "gain": None})
            found = OutcomesRecord(split="benchmarks", outcomes=[outcome], untrained=[base])
            (path / "outcomes").mkdir()
            found.write(outcomes_file(path, "benchmarks"))
    table = mrpo(f"compare {tmp_path}").out
    assert "arc_easy" in table
    assert "62.5" in table
    files = report([tmp_path], tmp_path / "page")
    page = next(file for file in files if file.suffix == ".html").read_text()
    assert "25-shot" in page
    assert "0.625 (0.525 to 0.725)" in page
    cache = made_up_cache(tmp_path / "cache", made_up_groups(4), {})
    query = "SELECT value FROM metrics WHERE metric = 'outcomes.benchmarks.arc_easy.mean'"
    with open_sql(cache.path, runs=tmp_path) as database:
        values = database.query(query).to_pydict()["value"]
    assert sorted(values) == [0.5, 0.5, 0.625, 0.625]


def test_a_split_s_outcomes_stand_first(tmp_path):
    rule = OutcomesRecord(prompts_hash="p", outcomes=[Outcome(scorer="rules:score", mean=3.0)])
    found = OutcomesRecord(outcomes=[Outcome(scorer="tiny", kind="benchmark", mean=0.5)])
    assert every_outcome(tmp_path, "test") is None
    (tmp_path / "outcomes").mkdir()
    found.write(outcomes_file(tmp_path, "benchmarks"))
    assert [o.key for o in every_outcome(tmp_path, "test").outcomes] == ["tiny"]
    rule.write(outcomes_file(tmp_path, "test"))
    both = every_outcome(tmp_path, "test")
    assert [o.key for o in both.outcomes] == ["rules:score greedy", "tiny"]
    assert both.prompts_hash == "p"
