"""Outcomes: rules of users, marks by plain loops, KL against full enumeration, who reads them."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from made_up import made_up_run
from stores import write_groups
from transformers import AutoModelForCausalLM

from mrpo_tools.cache import Cache
from mrpo_tools.config import Dataset, Recipe, Reference
from mrpo_tools.evaluation.judging import Given, judged
from mrpo_tools.evaluation.outcomes import is_measured, measure_outcomes, model_outcomes
from mrpo_tools.groups import in_split, user_prompt
from mrpo_tools.references.resolved import renderer_of, resolve
from mrpo_tools.report.differing import differing
from mrpo_tools.report.outcomes import chosen, frontiers, measured_key
from mrpo_tools.report.write import report
from mrpo_tools.runs.answers import Judged, Prompted, answers_file, read_answers, write_answers
from mrpo_tools.runs.methods import by_method
from mrpo_tools.runs.outcomes import Outcome, OutcomesRecord, outcomes_file, read_outcomes
from mrpo_tools.runs.read import read_results
from mrpo_tools.runs.run import load_run
from mrpo_tools.sampling import Answer, Sampler, Sampling
from mrpo_tools.scoring.rules import Rule, load_rule
from mrpo_tools.sources import load_groups
from mrpo_tools.training.train import train

NAMES = ["llama", "mistral"]
DRAWN = Sampling(3, 1.0, max_new_tokens=6)
RULES = """
def vowels(messages, answer):
    return float(sum(letter in "aeiou" for letter in answer))
vowels.full_marks = 2

def silent(messages, answer):
    return None

def failing(messages, answer):
    raise KeyError(messages[-1]["content"][:5])

def uncertain(messages, answer):
    return float("nan")

marks = 7
"""


@pytest.fixture
def rules(here) -> Path:
    """A file of rules in the working directory; every test's is a module of its own."""
    file = here / f"rules_{here.parent.name.replace('-', '_')}_{here.name}.py"
    file.write_text(RULES)
    return file


def vowels(messages, answer) -> float:
    return float(sum(letter in "aeiou" for letter in answer))


VOWELS = Rule("rules:vowels", vowels, "first version", 2.0)


@pytest.fixture(scope="module")
def groups(some_groups):
    splits = ("test", "train", "train")
    return [group.with_split(splits[n % 3]) for n, group in enumerate(some_groups)]


@pytest.fixture(scope="module")
def world(tmp_path_factory, references, groups, cached) -> Path:
    """A directory with a copy of the cache, the data, and a run trained far."""
    home = tmp_path_factory.mktemp("outcomes")
    shutil.copytree(cached.path, home / "cache")
    write_groups(home / "data.jsonl", groups)
    recipe = Recipe(loss="mrpo", refs=NAMES, max_steps=6, learning_rate=2e-2)
    train(
        recipe, groups, Cache(home / "cache"), references, home / "run",
        dataset=Dataset(source=str(home / "data.jsonl")),
    )  # fmt: skip
    return home


@pytest.fixture(scope="module")
def record(world, groups) -> OutcomesRecord:
    cache = Cache(world / "cache")
    return measure_outcomes(load_run(world / "run"), groups, [VOWELS], cache, DRAWN)


def by_hand(world: Path, model: str, decoding: str) -> list[list[Judged]]:
    """The answers of a policy to each prompt, as the run keeps them."""
    rows = read_answers(answers_file(world / "run", "test"))
    return [[each for each in row.answers if (each.model, each.decoding) == (model, decoding)]
            for row in rows]  # fmt: skip


def test_marks_by_a_plain_loop(record, world, groups):
    """Means, shares and gains over prompts; intervals are scipy's within resampling's scatter."""
    asked = {group.prompt_id for group in in_split(groups, "test")}
    assert [outcome.key for outcome in record.outcomes] == [
        "rules:vowels greedy", "rules:vowels sampled",
    ]  # fmt: skip
    for outcome in record.outcomes:
        after = by_hand(world, "trained", outcome.decoding)
        before = by_hand(world, "untrained", outcome.decoding)
        count = 3 if outcome.decoding == "sampled" else 1
        assert {len(answers) for answers in after + before} == {count}
        assert all(each.score == vowels([], each.content) for own in after for each in own)
        means = np.array([np.mean([each.score for each in own]) for own in after])
        old = np.array([np.mean([each.score for each in own]) for own in before])
        full = np.mean([[each.score >= 2 for each in own] for own in after])
        assert outcome.prompts == len(asked) == len(means)
        assert outcome.mean == pytest.approx(means.mean())
        assert outcome.full == pytest.approx(full)
        assert outcome.gain == pytest.approx((means - old).mean())
        assert record.before(outcome).mean == pytest.approx(old.mean())
        cut = [each.finish_reason == "length" for own in after for each in own]
        assert outcome.truncated == pytest.approx(np.mean(cut))
        interval = scipy.stats.bootstrap(
            (means - old,), np.mean, n_resamples=5000, method="percentile", rng=0
        ).confidence_interval
        assert outcome.intervals["gain"] == pytest.approx(tuple(interval), abs=0.15)


def test_an_untrained_policy_has_gone_no_way(record):
    greedy, sampled = record.untrained
    assert greedy.kl_nats is None
    assert sampled.kl_nats == 0.0
    assert sampled.intervals["kl_nats"] == (0.0, 0.0)
    assert record.outcomes[0].kl_nats is None
    assert record.outcomes[1].kl_nats > 0.05  # the run was trained far


def test_the_run_keeps_its_record_and_answers_as_data(record, world, groups, tmp_path):
    assert read_outcomes(world / "run", "test") == record
    written = json.loads(outcomes_file(world / "run", "test").read_text())
    assert OutcomesRecord.read(outcomes_file(world / "run", "test")).model_extra == {}
    assert written["outcomes"][0]["scorer"] == "rules:vowels"
    rows = read_answers(answers_file(world / "run", "test"))
    assert [row.group.prompt_id for row in rows] == list(
        dict.fromkeys(group.prompt_id for group in in_split(groups, "test"))
    )
    texts = answers_file(world / "run", "test").read_text().splitlines()
    whole = [line for line in texts if '"content": ""' not in line]  # an empty text is no data
    (tmp_path / "answers.jsonl").write_text("\n".join(whole))
    loaded = load_groups(tmp_path / "answers.jsonl", keep_status=["truncated"]).groups
    assert len(loaded) == len(whole) > 3
    assert all(response.score is not None for group in loaded for response in group.responses)


def test_nothing_is_generated_twice(record, world, groups, tmp_path):
    """Another rule is measured on the same answers; the first one's outcome stays."""
    run = tmp_path / "run"
    shutil.copytree(world / "run", run)
    before = {path: path.stat().st_mtime_ns for path in world.rglob("answers/*.jsonl")}
    other = Rule("rules:length", lambda _, answer: len(answer), "other")
    again = measure_outcomes(load_run(run), groups, [other], Cache(world / "cache"), DRAWN)
    assert {path: path.stat().st_mtime_ns for path in world.rglob("answers/*.jsonl")} == before
    keys = [outcome.key for outcome in again.outcomes]
    assert keys == [f"rules:{rule} {way}" for rule in ("length", "vowels")
                    for way in ("greedy", "sampled")]  # fmt: skip
    assert again.outcomes[1].kl_nats == record.outcomes[1].kl_nats
    assert again.outcomes[0].full is None


def test_whether_a_run_is_measured(record, world, groups):
    run = load_run(world / "run")
    assert is_measured(run, groups, [VOWELS], DRAWN)
    assert not is_measured(run, groups, [replace(VOWELS, identity="second version")], DRAWN)
    assert not is_measured(run, groups, [replace(VOWELS, full_marks=3.0)], DRAWN)
    assert not is_measured(run, groups, [VOWELS], replace(DRAWN, n=2))
    assert not is_measured(run, groups[3:], [VOWELS], DRAWN)


def test_other_temperatures_say_why_there_is_no_kl(world, groups):
    colder = replace(DRAWN, temperature=0.5, n=1)
    cache = Cache(world / "cache")
    first = measure_outcomes(load_run(world / "run"), groups, [VOWELS], cache, colder, "test")
    sampled = first.outcomes[1]
    assert sampled.kl_nats is None
    assert "not drawn from π itself" in sampled.note
    measure_outcomes(load_run(world / "run"), groups, [VOWELS], cache, DRAWN)


def test_a_model_without_a_run(world, groups, references, record):
    """The untrained policy as a model: its marks, no distance from itself, all of it to another."""
    cache = Cache(world / "cache")
    own = model_outcomes(references["llama"], groups, [VOWELS], cache, DRAWN, reference_1="llama")
    assert [outcome.mean for outcome in own.outcomes] == [
        outcome.mean for outcome in record.untrained
    ]
    assert own.outcomes[1].kl_nats == 0.0
    other = model_outcomes(
        references["llama"], groups, [VOWELS], cache, DRAWN, reference_1="mistral"
    )
    assert other.outcomes[1].kl_nats is None
    assert "reads other tokens" in other.outcomes[1].note
    assert "tokenizer" in other.outcomes[1].note


@pytest.fixture(scope="module")
def two(tiny_models, tmp_path_factory) -> tuple[Sampler, Sampler]:
    """A policy, and a reference with its tokenizer and other weights."""
    home = Path(shutil.copytree(tiny_models["llama"], tmp_path_factory.mktemp("two") / "other"))
    model = AutoModelForCausalLM.from_pretrained(home)
    torch.manual_seed(0)
    with torch.no_grad():
        model.lm_head.weight.add_(0.06 * torch.randn_like(model.lm_head.weight))
    model.save_pretrained(home)
    paths = (str(tiny_models["llama"]), str(home))
    policy, reference = (Sampler(resolve("m", Reference(model=path, dtype="float32")))
                         for path in paths)  # fmt: skip
    return policy, reference


def next_logps(sampler: Sampler, ids: list[list[int]]) -> torch.Tensor:
    """[R, V] the library's own log-probs of the token after each row."""
    model = AutoModelForCausalLM.from_pretrained(sampler.resolved.files.model)
    with torch.no_grad():
        return model(torch.tensor(ids), logits_to_keep=1).logits[:, -1].double().log_softmax(-1)


def test_expected_log_ratio_is_the_enumerated_kl(two, groups):
    """Answers of one token: every one of the vocabulary by the project's scorer, weighted by its
    probability, is Σ p log p/q. Shifted tokens and another reference are not."""
    policy, reference = two
    prompt = groups[0].prompt
    ids = renderer_of(policy.resolved).encode_prompt(prompt)
    own, theirs = (next_logps(sampler, [ids])[0] for sampler in two)
    enumerated = float((own.exp() * (own - theirs)).sum())
    every = [[Answer("p", token, "", (token,), "length") for token in range(len(own))]]
    logps, others = (torch.tensor(sampler.logps([prompt], every)) for sampler in two)
    expected = float((logps.exp() * (logps - others)).sum())
    assert expected == pytest.approx(enumerated, abs=1e-5)
    assert enumerated > 0.01
    shifted = [[replace(answer, ids=((answer.ids[0] + 1) % len(own),)) for answer in every[0]]]
    wrong = torch.tensor(reference.logps([prompt], shifted))
    assert float((logps.exp() * (logps - wrong)).sum()) != pytest.approx(enumerated, rel=0.1)


def test_estimated_kl_of_two_tokens_is_the_enumerated_one(two, groups):
    """All first tokens, and after each that does not end the answer all second ones; 1,000 samples
    of two tokens come within four standard errors."""
    policy, _ = two
    group = groups[0]
    ids = renderer_of(policy.resolved).encode_prompt(group.prompt)
    end = renderer_of(policy.resolved).tokenizer.eos_token_id
    own, theirs = (next_logps(sampler, [ids])[0] for sampler in two)
    after = [[*ids, token] for token in range(len(own))]
    own_second, their_second = (next_logps(sampler, after) for sampler in two)
    second = (own_second.exp() * (own_second - their_second)).sum(-1)
    second[end] = 0.0
    enumerated = float((own.exp() * (own - theirs + second)).sum())
    answers = policy.sample([group.prompt], Sampling(1000, 1.0, max_new_tokens=2))
    logps, others = ([sampler.logps([group.prompt], answers)] for sampler in two)
    given = Given(Sampling(1000, 1.0, max_new_tokens=2), answers, logps, others)
    [outcome] = judged([group], [VOWELS], [given])[0].outcomes
    error = float(given.log_ratios.std()) / math.sqrt(1000)
    assert abs(outcome.kl_nats - enumerated) < 4 * error < enumerated / 2
    itself = Given(given.sampling, answers, logps, logps)
    assert judged([group], [VOWELS], [itself])[0].outcomes[0].kl_nats == 0.0


def test_rules_are_found_and_named(rules):
    rule = load_rule(f"{rules.stem}:vowels")
    assert rule.full_marks == 2
    assert load_rule(rule.name, 9).full_marks == 9
    assert rule.marks(user_prompt("Say it."), "aloe") == 3.0
    assert load_rule("mrpo_tools.demo.tasks:score").full_marks == 10
    before = rule.identity
    rules.write_text(RULES + "\n# another version\n")
    assert load_rule(f"{rules.stem}:vowels").identity != before
    assert load_rule(f"{rules.stem}:failing").identity != load_rule(rule.name).identity


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("vowels", "MODULE:FUNCTION is needed"),
        ("no_such_module:f", "no module no_such_module"),
        ("{}:vowel", "has no function vowel"),
        ("{}:marks", "has no function marks"),
        ("{}:silent", "gives no number but None for the answer"),
        ("{}:uncertain", "gives no number but nan for the answer"),
        ("{}:failing", "fails for the answer"),
    ],
)
def test_a_rule_that_cannot_be_used_is_told_in_a_line(world, rules, record, mrpo, name, says):
    """And the accuracies are not measured for nothing: the rule is loaded first."""
    named = name.format(rules.stem)
    printed = mrpo(f"evaluate {world / 'run'} --rule {named} --max-new-tokens 6 --samples 3", 2)
    assert says in printed.err
    assert printed.out == ""
    [line] = [line for line in printed.err.splitlines() if says in line]
    if says.endswith("answer"):
        assert " to '" in line


def test_a_rule_whose_module_fails(here, mrpo, world):
    (here / "broken_rules.py").write_text("1/0\n")
    assert "ZeroDivisionError" in mrpo(f"evaluate {world / 'run'} --rule broken_rules:f", 2).err


def test_evaluate_prints_outcomes_first(world, rules, mrpo, record):
    line = f"evaluate {world / 'run'} --rule {rules.stem}:vowels --max-new-tokens 6 --samples 3"
    printed = mrpo(line).out
    greedy, sampled = record.outcomes
    assert printed.index("outcome by") < printed.index("accuracy by")
    assert f"{greedy.mean:.3f} [" in printed
    assert f"{sampled.kl_nats:.3f} [" in printed
    assert "KL(π‖reference 1), nats" in printed
    told = json.loads(mrpo(f"{line} --json").out)
    assert told["outcomes"]["outcomes"][1]["kl_nats"] == pytest.approx(sampled.kl_nats)
    assert "accuracies_logp" in told
    assert "outcome by" in mrpo(f"evaluate {world / 'run'}").out  # what was measured before


def test_metrics_have_the_outcomes(world, record, mrpo):
    query = "SELECT metric, value FROM metrics WHERE metric LIKE 'outcomes.%vowels sampled.%'"
    rows = json.loads(
        mrpo(f'sql "{query}" --runs {world} --cache {world / "cache"} --format json').out
    )
    values = {row["metric"]: row["value"] for row in rows}
    sampled = record.outcomes[1]
    name = next(name for name in values if "untrained" not in name).split(":")[0]
    assert values[f"{name}:vowels sampled.kl_nats"] == pytest.approx(sampled.kl_nats)
    assert values[f"{name}:vowels sampled.mean"] == pytest.approx(sampled.mean)
    before = name.replace("outcomes.test.", "outcomes.test.untrained.")
    assert values[f"{before}:vowels sampled.mean"] == pytest.approx(record.untrained[1].mean)


def measured_run(path: Path, loss: str, kl: float, mean: float, seed: int = 0, **words) -> Path:
    """A made-up run with one outcome."""
    made_up_run(path, loss, ["llama"] if loss == "dpo" else NAMES, seed, **words)
    ends = {"mean": (mean - 1, mean + 2), "kl_nats": (kl - 0.1, kl + 0.2)}
    outcome = Outcome(
        scorer="rules:score", decoding="sampled", mean=mean, kl_nats=kl, prompts=9, samples=4,
        temperature=1.0, intervals=ends,
    )  # fmt: skip
    untrained = outcome.model_copy(update={"mean": 1.5, "kl_nats": 0.0})
    outcomes_file(path, "test").parent.mkdir()
    OutcomesRecord(outcomes=[outcome], untrained=[untrained]).write(outcomes_file(path, "test"))
    return path


def test_a_frontier_is_a_method_along_learning_rates_and_betas(tmp_path):
    for place, (kl, mean) in enumerate([(2.0, 5.0), (1.0, 4.0)]):
        rate = 10.0 ** (-3 - place)
        measured_run(tmp_path / f"dpo-{place}", "dpo", kl, mean, learning_rate=rate)
    measured_run(tmp_path / "b", "dpo", 3.0, 3.0, beta=0.5)
    measured_run(tmp_path / "m0", "mrpo", 1.0, 2.0, learning_rate=1e-3)
    measured_run(tmp_path / "m1", "mrpo", 3.0, 4.0, seed=1, learning_rate=1e-3)
    methods = by_method(read_results([tmp_path]))
    lines = {line.label: line.points for line in frontiers(methods, measured_key(methods))}
    assert set(lines) == {"dpo", "mrpo"}
    assert [(point.kl, point.mean) for point in lines["dpo"]] == [(1, 4), (2, 5), (3, 3)]
    assert lines["dpo"][0].mean_ends == (1, 2)
    assert lines["dpo"][0].kl_ends == pytest.approx((0.1, 0.2))
    [point] = lines["mrpo"]
    assert (point.kl, point.mean) == (2.0, 3.0)
    assert point.mean_ends == pytest.approx((math.sqrt(2), math.sqrt(2)))


HOSTILE = "<script>alert(1)</script>|`*x*`\n[a](b)"


def rows_of(groups, marks) -> list[Prompted]:
    """Prompts whose greedy answer has one mark before and another after."""
    return [
        Prompted(group, [Judged(f"old {before}", before, "untrained", "greedy", "stop"),
                         Judged("drawn", 9.0, "trained", "sampled", "stop"),
                         Judged(HOSTILE, after, "trained", "greedy", "stop")])
        for group, (before, after) in zip(groups, marks, strict=False)
    ]  # fmt: skip


def test_three_prompts_are_chosen_by_rule(groups):
    rows = rows_of(groups, [(3, 3), (1, 5), (4, 2), (0, 4), (5, 1)])
    picked = chosen(rows)
    assert list(picked) == ["the first", "largest gain (+4)", "largest loss (-4)"]
    assert [row.group for row, _, _ in picked.values()] == [groups[0], groups[1], groups[4]]
    _, before, after = picked["largest gain (+4)"]
    assert (before.score, after.score) == (1, 5)
    assert list(chosen(rows_of(groups, [(1, 1), (2, 2)]))) == ["the first"]
    assert chosen([]) == {}


def test_the_report_shows_outcomes_and_answers_escaped(tmp_path, groups):
    run = measured_run(tmp_path / "runs/dpo", "dpo", 1.0, 4.0)
    write_answers(answers_file(run, "test"), rows_of(groups, [(3, 3), (1, 5), (4, 2)]))
    files = {path.name for path in report([tmp_path / "runs"], tmp_path / "report")}
    assert "frontier.png" in files
    page = (tmp_path / "report/report.html").read_text()
    text = (tmp_path / "report/report.md").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in text
    assert r"\|\`\*x\*\`<br>\[a](b)" in text
    for word in ("the first", "largest gain (+4)", "largest loss (-2)", "Outcome against distance"):
        assert word in page
        assert word in text
    assert "4 samples at T 1" in page
    assert page.index("Outcomes") < page.index("What was run")


def greedy_rows(groups, answers) -> list[Prompted]:
    """Prompts with one greedy answer of a trained policy, its text and its marks."""
    return [
        Prompted(group, [Judged("before", 10.0, "untrained", "greedy", "stop"),
                         Judged("drawn", 10.0, "trained", "sampled", "stop"),
                         Judged(text, marks, "trained", "greedy", "stop")])
        for group, (text, marks) in zip(groups, answers, strict=False)
    ]  # fmt: skip


def test_two_policies_are_set_side_by_side_where_they_differ_most(groups):
    """By the marks of their greedy answers, whatever the order of the files; the same text is no
    difference, and a prompt that one has not answered is left out."""
    mine = greedy_rows(groups, [("a", 3), ("same", 9), ("c", 1), ("d", 5), ("e", 2)])
    theirs = greedy_rows(groups, [("A", 4), ("same", 1), ("C", 8), ("D", 1)])[::-1]
    found = differing(mine, theirs)
    assert [(one.content, other.content) for _, one, other in found] == [
        ("c", "C"), ("d", "D"), ("a", "A"),
    ]  # fmt: skip
    assert [row.group for row, _, _ in found] == [groups[2], groups[3], groups[0]]
    assert differing(mine, mine) == []


def test_the_report_sets_two_runs_side_by_side(tmp_path, groups):
    for name, loss, marks, answers in (
        ("one", "dpo", 4.0, [(HOSTILE, 1), ("b", 2)]),
        ("other", "mrpo", 5.0, [("a", 7), ("B", 3)]),
    ):
        run = measured_run(tmp_path / "runs" / name, loss, 1.0, marks)
        write_answers(answers_file(run, "test"), greedy_rows(groups, answers))
    report([tmp_path / "runs"], tmp_path / "report")
    page = (tmp_path / "report/report.html").read_text()
    text = (tmp_path / "report/report.md").read_text()
    part = text[text.index("Where mrpo and dpo differ most") :]
    assert part.index("| a |") < part.index("| B |")
    assert "<script" not in page
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in page


def test_a_sweep_measures_every_run_once(world, rules, mrpo, monkeypatch, references, groups):
    """Again nothing is done; another version of the rule measures anew, trains nothing."""
    monkeypatch.chdir(rules.parent)
    models = [f"  {name}: {{model: {references[name].model}, dtype: float32}}" for name in NAMES]
    Path("mrpo.yaml").write_text(
        f"dataset: {world / 'data.jsonl'}\ncache: {world / 'cache'}\nreferences:\n"
        + "\n".join(models) + "\n"
    )  # fmt: skip
    Path("recipe.yaml").write_text("max_steps: 1\nlearning_rate: 1e-3\n")
    line = (f"sweep recipe.yaml --refs llama,mistral --grid loss=mrpo --no-baselines --seeds 0 "
            f"--rule {rules.stem}:vowels --samples 1 --max-new-tokens 4")  # fmt: skip
    mrpo(line)
    [file] = Path("runs").rglob("outcomes/test.json")
    first = OutcomesRecord.read(file)
    assert [outcome.samples for outcome in first.outcomes] == [1, 1]
    assert "1 runs, 1 of them done already" in mrpo(line).err
    trained = (file.parent.parent / "metrics.json").stat().st_mtime_ns
    rules.write_text(RULES.replace("aeiou", "aeiouy"))
    assert "1 runs, 0 of them done already" in mrpo(line).err
    assert OutcomesRecord.read(file).outcomes[0].identity != first.outcomes[0].identity
    assert (file.parent.parent / "metrics.json").stat().st_mtime_ns == trained
