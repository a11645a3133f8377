"""What a row holds besides its texts is used, listed or refused; the way out where none fits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_data import pairs, write_lines
from test_adapters import SAMPLES

from mrpo_tools.errors import DataError, UsageError
from mrpo_tools.messages import Message
from mrpo_tools.sources import ADAPTERS, Source, load_groups, read_rows
from mrpo_tools.sources.export import FORMS

pytestmark = pytest.mark.usefixtures("here")
PAIR = {"prompt": "Q", "chosen": "a", "rejected": "b"}
USER = {"role": "user", "content": "Q"}


def load(rows: list[Any], **options: Any) -> Source:
    return load_groups(write_lines(Path("x.jsonl"), rows), **options)


def problem_of(row: Any) -> str:
    """The only problem of a row."""
    with pytest.raises(DataError) as error:
        load([row])
    (problem,) = error.value.problems
    return str(problem).removeprefix("x.jsonl:1: ")


def test_show_and_validate_list_what_is_not_used(mrpo) -> None:
    """Columns by rows, keys of messages and responses by how many hold them; nothing empty."""
    said = {"role": "assistant", "content": "Hi", "name": "bot", "weight": 0}
    rows = [
        {"prompt": [USER, said, USER], "responses": [{"content": "a", "tokens": 1},
         {"content": "b", "tokens": 2}], "source": "web", "tags": [], "note": None},
        {"prompt": "Q", "responses": [{"content": "a"}, {"content": "b"}], "source": "web",
         "id": 1, "split": "train", "tags": ""},
    ]  # fmt: skip
    write_lines(Path("x.jsonl"), rows)
    unused = {"source": 2, "responses[].tokens": 2, "prompt[].name": 1, "prompt[].weight": 1}
    assert json.loads(mrpo("data validate x.jsonl --json").out)["unused"] == unused
    assert json.loads(mrpo("data show x.jsonl --json").out)["unused"] == unused
    line = "not used: responses[].tokens (2), source (2), prompt[].name (1), prompt[].weight (1)"
    assert line in mrpo("data validate x.jsonl").out
    assert "\nunused  " in mrpo("data show x.jsonl").out


def test_what_is_not_used_goes_by_its_name_in_the_file() -> None:
    rows = [{"q": [USER | {"n": 1}], "chosen": "a", "rejected": "b", "score_chosen": 1}]
    assert load(rows, mapping={"prompt": "q"}).unused == {"q[].n": 1, "score_chosen": 1}


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_format_takes_a_system_column(name: str) -> None:
    """Before the prompt of every group; one that stands there already may say the same."""
    samples = [row for row in SAMPLES[name][0] if ': "system"' not in json.dumps(row)]
    rows = [row | {"system": None} for row in samples]
    without = load(rows, adapter=name).groups
    groups = load([row | {"system": "Be brief."} for row in rows], adapter=name).groups
    assert [group.prompt[0] for group in groups] == [Message("system", "Be brief.")] * len(without)
    assert [group.prompt[1:] for group in groups] == [group.prompt for group in without]


def test_two_system_messages_must_agree() -> None:
    turns = [{"role": "system", "content": "S"}, USER]
    same = load([PAIR | {"prompt": turns, "system": "S"}]).groups[0]
    assert [turn.role for turn in same.prompt] == ["system", "user"]
    assert problem_of(PAIR | {"prompt": turns, "system": "T"}) == (
        "system: differs from the system message of the prompt, expected one of them"
    )


CALL = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
LOST = "is no part of the text and would be lost, expected none"


@pytest.mark.parametrize(
    ("turn", "problem"),
    [
        ({"tool_calls": CALL}, ".tool_calls: is in a message of the user, expected it in the assi"),
        ({"reasoning_content": "Hm."}, ".reasoning_content: is in a message of the user, expected"),
        ({"function_call": {"name": "f"}}, ".function_call: is not read, expected tool_calls in "),
        ({"reasoning": "Hm."}, ".reasoning: is not read, expected reasoning_content in its place"),
        ({"images": ["a"]}, f".images: {LOST}"),
        ({"role": "function"}, ".role: found the text 'function', expected one of system, develop"),
        ({"content": [{"type": "image_url", "image_url": "u"}]},
         ".content[0].type: found the text 'image_url', expected text, the only kind of"),
        ({"content": [{"type": "text", "text": 5}]},
         ".content[0].text: found the number 5, expected text"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused_by_name(turn: dict[str, Any], problem: str) -> None:
    assert problem_of(PAIR | {"prompt": [USER | turn]}).startswith(f"prompt[0]{problem}")


@pytest.mark.parametrize("nothing", [None, [], {}, "", "[]"])
def test_an_empty_list_of_tools_is_none(nothing: Any) -> None:
    turns = [USER | {"tool_calls": nothing, "reasoning_content": nothing}]
    source = load([PAIR | {"prompt": turns, "tools": nothing}])
    assert not source.unused


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two", "cache": None}]
    answer = [{"role": "assistant", "content": parts[1:]}]
    row = {"prompt": [USER | {"content": parts}], "chosen": answer,
           "rejected": [{"role": "assistant", "content": "no"}]}  # fmt: skip
    (group,) = load([row]).groups
    assert group.prompt[0].content == "one two"
    assert group.responses[0].content == "two"


def test_a_prompt_may_end_with_the_beginning_of_the_answer() -> None:
    turns = [USER, {"role": "assistant", "content": "Sure,"}]
    source = load([PAIR | {"prompt": turns}, *pairs("R")])
    assert source.counts["begun_responses"] == 1
    first = source.groups[0]
    assert [turn.role for turn in first.prompt] == ["user", "assistant"]
    write_lines(Path("y.jsonl"), [first.as_dict()])
    assert load_groups("y.jsonl").groups[0].group_id == first.group_id


@pytest.mark.parametrize("form", ["trl", "openrlhf", "llama-factory"])
def test_other_tools_get_the_whole_answer(form: str) -> None:
    turns = [USER, {"role": "assistant", "content": "Sure, "}]
    (group,) = load([PAIR | {"prompt": turns}]).groups
    write_lines(Path("y.jsonl"), list(FORMS[form].rows(group, "best_worst")))
    (back,) = load_groups("y.jsonl").groups
    assert [turn.content for turn in back.prompt] == ["Q"]
    assert [response.content for response in back.responses] == ["Sure, a", "Sure, b"]


@pytest.mark.parametrize("label", [0, 1, 0.0, True])
def test_a_label_may_be_a_number(label: Any) -> None:
    rows = [{"prompt": "Q", "completion": "a", "label": label},
            {"prompt": "Q", "completion": "b", "label": not label}]  # fmt: skip
    source = load(rows)
    assert source.adapter == "unpaired"
    assert [response.chosen for response in source.groups[0].responses] == [bool(label), not label]


BAD = [PAIR, PAIR | {"chosen": ""}, "no row", *pairs("R")]


@pytest.mark.parametrize("command", ["show x.jsonl", "validate x.jsonl", "convert x.jsonl y.jsonl"])
def test_bad_rows_are_left_out_on_request_and_listed(command: str, mrpo) -> None:
    write_lines(Path("x.jsonl"), BAD)
    mrpo(f"data {command}", 2)
    assert not Path("x.skipped.txt").exists()
    printed = mrpo(f"data {command} --skip-bad")
    assert "2 bad rows left out; each is listed in x.skipped.txt" in printed.err
    assert "no problem found" not in printed.out
    assert Path("x.skipped.txt").read_text().splitlines() == [
        "x.jsonl:2: chosen: found empty text, expected text, a message or a list of messages",
        "x.jsonl:3: row: found the text 'no row', expected an object",
    ]


def test_every_command_that_reads_data_may_leave_bad_rows_out(mrpo) -> None:
    """Past the data, the next thing that is wrong is said: the model that is not there."""
    write_lines(Path("x.jsonl"), BAD)
    error = mrpo("precompute --ref a=./model --dataset x.jsonl", 2).err
    assert "--skip-bad leaves them out" in error
    error = mrpo("precompute --ref a=./model --dataset x.jsonl --skip-bad", 2).err
    assert "2 bad rows left out; each is listed in x.skipped.txt" in error
    assert "model" in error.splitlines()[-2]
    Path("mrpo.yaml").write_text("dataset: {source: x.jsonl, skip_bad: true}")
    assert "2 skipped rows" in mrpo("data validate").out


def test_what_was_good_is_what_is_converted(mrpo) -> None:
    write_lines(Path("x.jsonl"), BAD)
    mrpo("data convert x.jsonl y.jsonl --skip-bad")
    assert [group.prompt[0].content for group in load_groups("y.jsonl").groups] == ["Q", "R"]


def test_where_nothing_fits_the_wanted_row_and_a_line_that_makes_it_are_shown(mrpo) -> None:
    """The line runs once the two scores are named, and what it prints is read."""
    rows = [{"was gefragt": f"it's {n}", "erste": "a$HOME", "zweite": 'b"', "n1": 1, "n2": n}
            for n in range(3)]  # fmt: skip
    write_lines(Path("x.jsonl"), rows)
    error = mrpo("data validate x.jsonl", 2).err
    assert '{"prompt": "…", "responses": [{"content": "…", "score": 1}, {"content": "…", ' in error
    assert "--map 'prompt=was gefragt,chosen=BETTER,rejected=WORSE'" in error
    assert "--map 'prompt=was gefragt,a=erste,b=zweite,winner=VERDICT'" in error
    (line,) = (line for line in error.splitlines() if line.strip().startswith("python -c"))
    assert subprocess.run(["sh", "-c", line], capture_output=True, check=False).returncode
    line = line.replace("SCORE OF erste", "n1").replace("SCORE OF zweite", "n2")
    line = line.replace("python", sys.executable, 1)
    subprocess.run(["sh", "-c", line], check=True)
    groups = load_groups("groups.jsonl").groups
    assert [group.prompt[0].content for group in groups] == ["it's 0", "it's 1", "it's 2"]
    assert [[r.content, r.score] for r in groups[2].responses] == [["a$HOME", 1], ['b"', 2]]


def test_the_likely_columns_are_named() -> None:
    """WebGPT's and a paired Stack Exchange's: the question may be in an object."""
    row = {"question": {"dataset": "eli5", "full_text": "Why is the sky blue?"}, "tokens_0": {},
           "answer_0": "a", "score_0": 0.5, "answer_1": "b", "score_1": 0, "note": "x"}  # fmt: skip
    with pytest.raises(UsageError) as error:
        load([row])
    asked = "--map prompt=question.full_text,a=answer_0,b=answer_1,winner=VERDICT"
    assert asked in error.value.hint
    assert '"prompt": r["question"]["full_text"], "responses": [{"content": r["answer_0"]' in (
        error.value.hint
    )
    row = {"qid": "1", "question": "Q", "date": "d", "response_j": "a", "response_k": "b"}
    with pytest.raises(UsageError) as error:
        load([row])
    assert "--map prompt=question,a=response_j,b=response_k,winner=VERDICT" in error.value.hint


def test_two_texts_are_not_read_alone_beside_a_conversation() -> None:
    """UltraInteract: both begin with the same words, which are no prompt."""
    talk = [{"from": "user", "value": "Solve"}, {"from": "assistant", "value": "1"},
            {"from": "user", "value": "No"}]  # fmt: skip
    row = {"task": "Coding", "trajectory": talk, "chosen": "Step 1 x", "rejected": "Step 1 y"}
    with pytest.raises(UsageError) as error:
        load([row])
    assert "--map prompt=trajectory,chosen=BETTER,rejected=WORSE" in error.value.hint
    (group,) = load([row], mapping={"prompt": "trajectory"}).groups
    assert [turn.content for turn in group.prompt] == ["Solve", "1", "No"]
    assert load([row | {"trajectory": "a label"}]).adapter == "implicit"


@pytest.mark.parametrize(
    "row", [{}, {"a": 1}, {"text": "x"}, {"\u202e\x1b": "x", "y'": "z", "w": ""}]
)
def test_any_columns_have_a_way_out(row: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as error:
        load([row])
    assert "no adapter fits the columns" in str(error.value)
    assert "read_rows" in error.value.hint
    assert "\x1b" not in f"{error.value}{error.value.hint}"


def test_rows_are_read_as_they_are() -> None:
    write_lines(Path("x.jsonl"), BAD)
    rows = read_rows("x.jsonl")
    assert [next(rows), next(rows)] == BAD[:2]
    with pytest.raises(DataError, match="a row cannot be read"):
        next(rows)


def test_conversations_may_be_json_text() -> None:
    talks = [json.dumps([USER, {"role": "assistant", "content": text}]) for text in "ab"]
    row = {"conversation_a": talks[0], "conversation_b": talks[1], "winner": "model_b"}
    (group,) = load([row]).groups
    assert [(r.content, r.chosen) for r in group.responses] == [("a", False), ("b", True)]


def test_a_prompt_beside_the_conversations_is_used_where_it_stands_in_them() -> None:
    talks = {key: [USER, {"role": "assistant", "content": key}] for key in ("chosen", "rejected")}
    scores = {"rating_chosen": 4, "rating_rejected": 2}
    source = load([{"prompt": "Q", **talks, **scores}])
    assert not source.unused
    assert [response.score for response in source.groups[0].responses] == [4.0, 2.0]
    assert load([{"prompt": "P", **talks}]).unused == {"prompt": 1}


def test_when2calls_answers_are_messages() -> None:
    said = [{"role": "assistant", "content": text} for text in "ab"]
    row = {"messages": [USER], "chosen_response": said[0], "rejected_response": said[1],
           "tools": ['{"name": "f"}']}  # fmt: skip
    (group,) = load([row]).groups
    assert (group.tools, group.responses[0].content) == ('[{"name":"f"}]', "a")
