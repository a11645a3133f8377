"""Sampled answers as data: kept through kills, each with its status, of whose prompts they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from fake_server import Completer, FakeServer, RefusedByServer, mixed
from kill_generate import BATCH_TOKENS, CONCURRENCY, SAMPLING
from small_data import write_lines

from mrpo_tools.config import Reference
from mrpo_tools.errors import ServerError, UsageError
from mrpo_tools.groups import Group, Response, group_from_dict, user_prompt
from mrpo_tools.references.resolved import renderer_of, resolve, resolve_reader
from mrpo_tools.sampling import Samples, Sampling, sample_groups
from mrpo_tools.sampling.answers import Answer
from mrpo_tools.sampling.samples import responses_of
from mrpo_tools.server import Server
from mrpo_tools.sources import load_groups

HERE = Path(__file__).parent
SAMPLED = Sampling(3, 1.0, max_new_tokens=8, seed=5)
PATH = "/v1/completions"
KILLS = 4
KEY = "sk-a-secret-0123456789"
QUICK = {"first_wait": 0.01, "timeout": 2.0, "attempts": 12}
SAID = [("one", "stop"), ("cut", "length"), ("one", "stop"), ("", "stop"), ("two", "stop"),
        ("cut", "length"), ("one", "length"), ("", "length")]  # fmt: skip
STATUSES = [None, "truncated", "duplicate", "empty", None, "truncated", "truncated", "empty"]


def answers(*said: tuple[str, str]) -> list[Answer]:
    return [Answer("p", n, content, (), reason) for n, (content, reason) in enumerate(said)]


def group(number: int, *said: tuple[str, str], split: str | None = "train") -> Group:
    responses = responses_of(answers(*said), "policy")
    return Group(user_prompt(f"prompt {number}"), responses, f"row-{number}", split)


@pytest.fixture
def prompts() -> list[Group]:
    """Twelve prompts, a third of them in `test`; two share their prompt."""
    rows = [
        Group(user_prompt(f"Count to {n % 11}."), (Response("a"), Response("b")), f"row-{n}",
              "test" if n % 3 == 0 else "train")
        for n in range(12)
    ]  # fmt: skip
    return [replace(row, split=rows[0].split) if n == 11 else row for n, row in enumerate(rows)]


@pytest.fixture
def llama(tiny_models) -> Reference:
    return Reference(model=str(tiny_models["llama"]), dtype="float32")


def test_statuses_by_hand():
    """Cut answers are truncated whatever they repeat; of finished ones the first counts."""
    responses = responses_of(answers(*SAID), "policy")
    assert [response.status for response in responses] == STATUSES
    assert {response.model for response in responses} == {"policy"}


def samples() -> Samples:
    answered = [group(0, *SAID), group(1, ("a", "stop"), ("b", "stop")), group(2, ("a", "length")),
                group(3, ("a", "stop"), ("a", "stop")), group(4, ("a", "stop"), ("a", "length")),
                group(5, ("only", "stop"))]  # fmt: skip
    return Samples(answered, {"model": "policy", "temperature": 1.0}, 0)


KEPT = {
    (): [["one", "two"], ["a", "b"]],
    ("truncated",): [["one", "cut", "two"], ["a", "b"]],
    ("empty",): [["one", "", "two"], ["a", "b"]],
    ("truncated", "empty"): [["one", "cut", "", "two"], ["a", "b"]],
}


@pytest.mark.parametrize("keep", KEPT, ids="+".join)
def test_what_is_left_out_of_training_unless_it_is_kept(keep, tmp_path):
    """From the file as from memory; `one` that was cut is the same response as `one`."""
    path = tmp_path / "samples.jsonl"
    samples().write(path)
    source = load_groups(path, keep_status=keep)
    texts = [[response.content for response in group.responses] for group in source.groups]
    assert texts == KEPT[keep]
    assert source.groups == samples().groups(keep)
    assert source.unused == {}
    left = {"truncated": 5, "empty": 2, "duplicate": 2}
    for status, count in left.items():
        assert source.counts[f"{status}_responses"] == (0 if status in keep else count)
    assert source.counts["prompts_with_one_response"] == 4
    again = [group_from_dict(group.as_dict()) for group in source.groups]
    assert again == source.groups


def test_counts_of_samples():
    assert samples().counts == {
        "ok": 7, "truncated": 5, "empty": 2, "duplicate": 2, "prompts_with_one_response": 4,
    }  # fmt: skip


def test_data_of_nothing_but_cut_answers_names_the_way_out(tmp_path):
    path = write_lines(
        tmp_path / "cut.jsonl", [group(0, ("a", "length"), ("b", "length")).as_dict()]
    )
    with pytest.raises(UsageError, match="truncated_responses 2") as error:
        load_groups(path)
    assert "--keep-status truncated" in error.value.hint
    assert len(load_groups(path, keep_status=["truncated"]).groups) == 1


def test_a_cut_or_empty_answer_needs_no_status_and_a_status_must_be_one(tmp_path):
    ended = [("a", "stop"), ("b", None), ("c", "length"), ("", "stop")]
    responses = [{"content": text, "finish_reason": reason} for text, reason in ended]
    row = {"prompt": "p", "responses": responses}
    [read] = load_groups(write_lines(tmp_path / "a.jsonl", [row])).groups
    assert [response.content for response in read.responses] == ["a", "b"]
    row["responses"][1]["status"] = "fine"
    with pytest.raises(UsageError, match="expected one of truncated, empty, duplicate"):
        load_groups(write_lines(tmp_path / "b.jsonl", [row]))


def test_ids_know_nothing_of_how_an_answer_ended():
    plain = Group(user_prompt("prompt 0"), (Response("one"), Response("two")))
    sampled = group(0, ("one", "stop"), ("two", "length"))
    assert sampled.response_ids == plain.response_ids
    assert sampled.group_id == plain.group_id


def test_a_larger_n_samples_what_is_new_and_the_same_n_nothing(llama, prompts, tmp_path, model):
    reference = llama.model_copy(update={"model": str(model)})
    first = sample_groups(reference, prompts, SAMPLED, tmp_path, name="policy")
    assert first.generated == 3 * 11  # prompts, of which two are one
    more = sample_groups(reference, prompts, replace(SAMPLED, n=5), tmp_path, name="policy")
    assert more.generated == 2 * 11
    for before, after in zip(first.answered, more.answered, strict=True):
        texts = [[response.content for response in each.responses] for each in (before, after)]
        assert texts[1][:3] == texts[0]
        assert (before.prompt, before.split, before.source_id) == (
            after.prompt, after.split, after.source_id,
        )  # fmt: skip
    assert sample_groups(reference, prompts, SAMPLED, tmp_path).generated == 0
    other = sample_groups(reference, prompts, replace(SAMPLED, seed=6), tmp_path)
    assert other.generated == 3 * 11


def text_of(renderer, prompt) -> str:
    """The prompt as its own tokenizer reads it, by way of the library."""
    turns = [{"role": turn.role, "content": turn.content} for turn in prompt]
    text = renderer.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return text.removeprefix(renderer.tokenizer.bos_token)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen"])
def test_the_text_of_a_prompt_has_its_ids(tiny_models, prompts, name):
    """BOS, which the tokenizer adds, is in it no more; a prompt of control tokens has none."""
    renderer = renderer_of(resolve(name, Reference(model=str(tiny_models[name]))))
    for each in prompts:
        text = renderer.prompt_text(each.prompt)
        assert text is not None
        if name != "qwen":
            assert text == text_of(renderer, each.prompt)
        assert renderer.tokenizer(text)["input_ids"] == renderer.encode_prompt(each.prompt)
    end = renderer.tokenizer.eos_token
    assert renderer.prompt_text(user_prompt(f"Say {end} now.")) is None


def test_a_server_answers_through_faults_and_only_what_is_missing(llama, prompts, tmp_path, capfd):
    """Ids are ours; the text is the server's; each answer is one recorded request of its own."""
    renderer = renderer_of(resolve_reader("llama", llama))
    asked = {tuple(renderer.encode_prompt(each.prompt)) for each in prompts}
    os.environ["MRPO_SERVER_KEY"] = KEY
    try:
        with FakeServer({PATH: Completer()}, faults=mixed(5, 0.3), key=KEY, late=2.5) as server:
            words = Server(server.url, concurrency=4, **QUICK)
            first = sample_groups(llama, prompts, SAMPLED, tmp_path / "home", server=words)
            once = len(server.answered(PATH))
            more = sample_groups(
                llama, prompts, replace(SAMPLED, n=4), tmp_path / "home", server=words
            )
    finally:
        del os.environ["MRPO_SERVER_KEY"]
    bodies = [body for body in server.answered(PATH) if body["max_tokens"] > 1]
    requests = Counter((tuple(body["prompt"]), body["seed"]) for body in bodies)
    assert set(requests.values()) == {1}
    assert {prompt for prompt, _ in requests} == asked
    assert len(requests) == 4 * 11
    assert len(server.answered(PATH)) - once == 11 + 1  # the new ones, and one to find the form
    assert first.generated == 3 * 11
    assert more.generated == 11
    said = {response.content for group in more.answered for response in group.responses}
    assert said == {Completer().reply(list(p), s)[0].strip() for p, s in requests}
    assert more.sampler["engine"] == "server"
    kept = "".join(path.read_text() for path in (tmp_path / "home").rglob("*.json*"))
    more.write(tmp_path / "samples.jsonl")
    output = "".join(capfd.readouterr()) + kept + (tmp_path / "samples.jsonl").read_text()
    assert KEY not in output
    assert "127.0.0.1" not in kept


def test_what_a_server_answered_is_kept_when_it_fails(llama, prompts, tmp_path):
    """One prompt is refused: the others are there, and only it is asked again."""
    renderer = renderer_of(resolve_reader("llama", llama))
    bad = renderer.encode_prompt(prompts[4].prompt)

    def reply(prompt, seed):
        if prompt == bad:
            raise RefusedByServer(400, "too long")
        return f"answer {seed}", "stop"

    with FakeServer({PATH: Completer(reply=reply)}) as server:
        words = Server(server.url, concurrency=1, **QUICK)
        with pytest.raises(ServerError, match="3 of 33 requests came to nothing"):
            sample_groups(llama, prompts, SAMPLED, tmp_path, server=words)
    with FakeServer({PATH: Completer()}) as server:
        words = Server(server.url, **QUICK)
        assert sample_groups(llama, prompts, SAMPLED, tmp_path, server=words).generated == 3
        assert {tuple(body["prompt"]) for body in server.answered(PATH)} == {tuple(bad)}


def test_a_server_needs_no_weights_here(llama, model, prompts, tmp_path):
    reference = llama.model_copy(update={"model": str(model)})
    for path in model.glob("*.safetensors"):
        path.unlink()
    with FakeServer({PATH: Completer()}) as server:
        words = Server(server.url, **QUICK)
        assert sample_groups(reference, prompts, SAMPLED, tmp_path, server=words).generated == 33
    with pytest.raises(UsageError, match="no safetensors weights"):
        sample_groups(reference, prompts, SAMPLED, tmp_path)


def test_other_weights_here_are_another_policy_of_the_server(llama, model):
    """A policy that is trained on keeps its name there: its old answers are not taken for new."""
    reference = llama.model_copy(update={"model": str(model)})
    before = resolve_reader("policy", reference).identity
    [weights] = model.glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    after = resolve_reader("policy", reference).identity
    assert [pair.field for pair in after.differences(before)] == ["weights"]


def test_other_ends_are_other_answers(llama, model, prompts, tmp_path):
    """What ends an answer is in no identity of log-probs, and in a sampler's."""
    reference = llama.model_copy(update={"model": str(model)})
    first = sample_groups(reference, prompts, SAMPLED, tmp_path)
    file = model / "generation_config.json"
    words = json.loads(file.read_text())
    often, _ = Counter(token for row in kept_rows(tmp_path) for token in row["ids"]).most_common(1)[
        0
    ]
    file.write_text(json.dumps(words | {"eos_token_id": [words["eos_token_id"], often]}))
    again = sample_groups(reference, prompts, SAMPLED, tmp_path)
    assert again.generated == 33
    assert again.counts["truncated"] < first.counts["truncated"]


@pytest.mark.parametrize("kind", ["here", "server"])
def test_killed_again_and_again_nothing_is_lost_or_doubled(kind, tiny_models, tmp_path, prompts):
    """A kill loses the batch at hand: what was drawn and is not on the disk is drawn again."""
    data, folder = tmp_path / "data.jsonl", tmp_path / "work"
    folder.mkdir()
    write_lines(data, (each.as_dict() for each in prompts))
    renderer = renderer_of(resolve("llama", Reference(model=str(tiny_models["llama"]))))
    shortest = min(len(renderer.encode_prompt(each.prompt)) for each in prompts)
    batch = BATCH_TOKENS // (shortest + SAMPLING.max_new_tokens)
    command = [sys.executable, str(HERE / "kill_generate.py"), kind, str(KILLS),
               str(tiny_models["llama"]), str(data), str(folder)]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["answers"] == 44
    for name in ("lost", "foreign", "different", "doubled", "forgotten"):
        assert figures[name] == 0, figures
    assert figures["midway"] >= 1
    assert figures["at hand"] <= (batch if kind == "here" else CONCURRENCY)
    # on their way at a kill, or answered while earlier answers were being written
    assert figures.get("answered again", 0) <= 3 * KILLS * CONCURRENCY


@pytest.fixture
def project(here, prompts) -> Path:
    write_lines(here / "data.jsonl", (each.as_dict() for each in prompts))
    return here


def kept_rows(home: Path) -> list[dict]:
    return [row for path in home.rglob("*.jsonl") for row in rows_of(path)]


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def test_the_command_samples_what_may_be_trained_on(project, tiny_models, mrpo):
    """Prompts of `test` need the word; every prompt keeps its split, name and settings."""
    line = f"generate {tiny_models['llama']} --dataset data.jsonl --max-new-tokens 4"
    printed = mrpo(f"{line} --n 2 --temperature 0.7 --seed 3 -o train.jsonl")
    assert "sampling the prompts of split train" in printed.err
    rows = rows_of(Path("train.jsonl"))
    assert {row["split"] for row in rows} == {"train"}
    assert len(rows) == 7
    assert {len(row["responses"]) for row in rows} == {2}
    words = {"temperature": 0.7, "seed": 3, "top_p": 1.0, "top_k": 0, "max_new_tokens": 4,
             "engine": "transformers", "model": str(tiny_models["llama"])}  # fmt: skip
    assert all(words.items() <= row["sampler"].items() for row in rows)
    assert "14 answers to 7 prompts in train.jsonl" in printed.out
    mrpo(f"{line} --split test -o test.jsonl")
    assert {row["split"] for row in rows_of(Path("test.jsonl"))} == {"test"}
    everything = mrpo(f"{line} --split all --limit 5").out.splitlines()
    assert len(everything) == 5
    assert {"train", "test"} == {json.loads(row)["split"] for row in everything}
    mrpo("data show train.jsonl --keep-status truncated")
    assert Path("train.jsonl.answers").is_dir()  # there is no cache
    assert "several greedy answers are one" in mrpo(f"{line} --n 2 -o x.jsonl", 2).err
    assert "JSON lines" in mrpo(f"{line} -o x.parquet", 2).err


def test_sampled_answers_go_into_the_cache_as_other_data(project, llama, mrpo, prompts):
    line = f"generate {llama.model} --dataset data.jsonl --split all --n 4 --temperature 1"
    with FakeServer({PATH: Completer()}) as server:
        mrpo(f"{line} --server {server.url} --cache cache -o samples.jsonl")
    assert len(list(Path("cache/answers").iterdir())) == 1
    mrpo(f"precompute --ref llama={llama.model} --dataset samples.jsonl --cache cache")
    computed = json.loads(mrpo("sql --cache cache --format json "
                               "'SELECT count(*) AS n FROM logps'").out)  # fmt: skip
    usable = sum(len(each.responses) for each in load_groups("samples.jsonl").groups)
    assert computed == [{"n": usable}]


def test_several_processes_deal_the_prompts_out(project, tiny_models, mrpo):
    """As one process answers them; each has a file of its own."""
    line = ["generate", str(tiny_models["llama"]), "--dataset", "data.jsonl", "--samples", "3",
            "--temperature", "1", "--max-new-tokens", "4", "--split", "all", "-o"]  # fmt: skip
    python = [sys.executable, "-m"]
    torchrun = ["torch.distributed.run", "--nproc-per-node", "2", "-m"]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    mrpo(" ".join([*line, "one.jsonl"]))
    command = [*python, *torchrun, "mrpo_tools", *line, "two.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert rows_of(Path("two.jsonl")) == rows_of(Path("one.jsonl"))
    [folder] = Path("two.jsonl.answers").iterdir()
    files = [rows_of(path) for path in folder.glob("*.jsonl")]
    assert sorted(len({row["prompt_id"] for row in rows}) for rows in files) == [5, 6]
    assert sum(map(len, files)) == 33
