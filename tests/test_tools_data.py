"""Tools, calls and reasoning from a data set's rows to the cache, SQL and other tools' forms.

The ids of mere text stay what they were.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_data import write_lines
from stores import rows_of

from mrpo_tools.cache import Cache, datasets
from mrpo_tools.cache.pairs import export_pairs
from mrpo_tools.errors import DataError
from mrpo_tools.groups import Group
from mrpo_tools.messages import Message, ToolCall
from mrpo_tools.sources import Source, load_groups
from mrpo_tools.sql import open_sql

pytestmark = pytest.mark.usefixtures("here")
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
TOOLS_TEXT = '[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]'
ASKED = {"role": "user", "content": "Q"}


def calling(arguments: Any = '{"b": 1, "a": [true, null]}', **more: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": arguments}
    calls = [{"id": "c1", "type": "function", "function": function}]
    return {"role": "assistant", "content": None, "tool_calls": calls, **more}


ANSWERED = {"role": "tool", "tool_call_id": "c1", "content": "21"}
THOUGHT = {"role": "assistant", "content": "x", "reasoning_content": "Hm."}
ROW = {"prompt": [ASKED, calling(), ANSWERED], "tools": [TOOL],
       "chosen": [calling({"b": 2})], "rejected": [THOUGHT]}  # fmt: skip
CALLED = Message("assistant", "", tool_calls=(ToolCall("f", '{"b":1,"a":[true,null]}', "c1"),))
PROMPT = (Message("user", "Q"), CALLED, Message("tool", "21", tool_call_id="c1"))
ANSWER = ToolCall("f", '{"b":2}', "c1")


def load(*rows: Any, **options: Any) -> Source:
    return load_groups(write_lines(Path("x.jsonl"), list(rows)), **options)


def only(*rows: Any) -> Group:
    (group,) = load(*rows).groups
    return group


def test_the_ids_of_text_are_of_the_documented_json() -> None:
    """Hashed here by hand, for every group of the demo; none of them moved."""

    def digits(value: Any) -> str:
        text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    keys = []
    path = Path(__file__).parent.parent / "data" / "demo.jsonl"
    for group in load_groups(path).groups:
        prompt = [{"role": turn.role, "content": turn.content} for turn in group.prompt]
        said = [digits({"prompt": prompt, "content": r.content}) for r in group.responses]
        judged = sorted(
            [key, r.score, r.chosen] for key, r in zip(said, group.responses, strict=True)
        )
        whole = digits({"prompt_id": digits(prompt), "responses": judged})
        assert (group.prompt_id, *group.response_ids, group.group_id) == (
            digits(prompt),
            *said,
            whole,
        )
        keys += [group.prompt_id, *group.response_ids, group.group_id]
    moved = "a8fb96f875bc0ee5ba1cd569723067279a0e8f7dc6eed671a191ff475991a9be"
    assert hashlib.sha256("\n".join(keys).encode()).hexdigest() == moved


def test_trls_rows_with_tools() -> None:
    group = only(ROW)
    assert group.prompt == PROMPT
    assert group.tools == TOOLS_TEXT
    first, second = group.responses
    assert (first.content, first.tool_calls, first.chosen) == ("", (ANSWER,), True)
    assert (second.content, second.reasoning_content, second.chosen) == ("x", "Hm.", False)
    assert not load(ROW).unused


@pytest.mark.parametrize("tools", [json.dumps([TOOL]), [json.dumps(TOOL)], [TOOL]])
def test_tools_may_be_json_text(tools: Any) -> None:
    assert only(ROW | {"tools": tools}).group_id == only(ROW).group_id


@pytest.mark.parametrize("calls", [
    json.dumps([{"name": "f", "arguments": {"b": 2}, "id": "c1"}]),
    [{"name": "f", "arguments": '{"b": 2}', "id": "c1"}],
])  # fmt: skip
def test_calls_may_be_flat_or_json_text(calls: Any) -> None:
    chosen = {"role": "assistant", "content": "", "tool_calls": calls}
    assert only(ROW | {"chosen": [chosen]}).responses[0].tool_calls == (ANSWER,)


def test_openais_rows_and_whole_conversations_with_tools() -> None:
    row = {"input": {"messages": ROW["prompt"], "tools": [TOOL], "parallel_tool_calls": False},
           "preferred_output": ROW["chosen"], "non_preferred_output": ROW["rejected"]}  # fmt: skip
    assert only(row).group_id == only(ROW).group_id
    assert load(row).unused == {"input.parallel_tool_calls": 1}
    whole = {"chosen": ROW["prompt"] + ROW["chosen"], "rejected": ROW["prompt"] + ROW["rejected"],
             "tools": [TOOL]}  # fmt: skip
    assert only(whole).group_id == only(ROW).group_id


def test_a_table_has_every_key_in_every_object() -> None:
    """Null there is absent, in arguments and in schemas too."""
    other = {"type": "function", "function": {"name": "g", "description": "x"}}
    row = ROW | {"prompt": [ASKED, calling({"b": 1}), ANSWERED], "tools": [TOOL, other],
                 "chosen": [calling({"a": "y"})]}  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row, row]), "x.parquet")
    assert load_groups("x.parquet").groups[0].as_dict() == only(row).as_dict()
    assert "null" not in json.dumps(load_groups("x.parquet").groups[0].as_dict())


@pytest.mark.parametrize(("change", "problem"), [
    ({"tools": "f"}, "tools: not JSON: "),
    ({"tools": ["f"]}, "tools[0]: not JSON: "),
    ({"tools": {"f": 1}}, "tools: found an object, expected a list of tools"),
    ({"chosen": [calling("[1]")]},
     "chosen[0].tool_calls[0].function.arguments: found a list of 1, expected an object, or JSON"),
    ({"chosen": [calling("b=2")]}, "chosen[0].tool_calls[0].function.arguments: not JSON: "),
    ({"chosen": [calling({"a": "\0"})]},
     "chosen[0].tool_calls[0].function.arguments: found '\\\\u0000' in a text"),
    ({"chosen": [{"role": "assistant", "content": "", "tool_calls": [{"type": "custom"}]}]},
     "chosen[0].tool_calls[0].type: found the text 'custom', expected function"),
    ({"prompt": [ASKED, calling()]}, "prompt: the last message calls tools, expected their answ"),
    ({"prompt": [ASKED, calling(), ASKED]}, "prompt: the roles are user assistant user; expected"),
    ({"prompt": [ASKED, ANSWERED]}, "prompt: the roles are user tool; expected"),
    ({"prompt": [ASKED, THOUGHT]}, "prompt: the beginning of an answer has reasoning_content"),
    ({"chosen": [ANSWERED]}, "chosen: the response is tool; expected one assistant message"),
])  # fmt: skip
def test_what_is_no_call_and_no_tool_is_a_problem(change: Any, problem: str) -> None:
    with pytest.raises(DataError) as error:
        load(ROW | change)
    assert str(error.value.problems[0]).removeprefix("x.jsonl:1: ").startswith(problem)


@pytest.mark.parametrize(
    "roles", ["s u", "d u", "s d u", "u a t", "u c t t a u", "u c t c t", "u a"]
)
def test_orders_of_roles(roles: str) -> None:
    said = {"s": {"role": "system", "content": "S"}, "d": {"role": "developer", "content": "D"},
            "u": ASKED, "a": {"role": "assistant", "content": "A"}, "c": calling(),
            "t": ANSWERED}  # fmt: skip
    turns = [said[letter] for letter in roles.split()]
    assert len(only({"prompt": turns, "chosen": "a", "rejected": "b"}).prompt) == len(turns)


def test_the_canonical_form_and_trls_come_back(mrpo) -> None:
    """As JSONL; the order of the tools' and arguments' keys too, which ids follow."""
    group = only(ROW)
    mrpo("data convert x.jsonl y.jsonl")
    assert json.loads(Path("y.jsonl").read_text())["tools"] == [TOOL]
    assert load_groups("y.jsonl").groups == [group]
    mrpo("data convert x.jsonl z.jsonl --to trl")
    assert load_groups("z.jsonl").groups == [group]


@pytest.mark.parametrize("line", [
    "y.parquet", "y.parquet --to trl", "y.jsonl --to openrlhf", "y.jsonl --to llama-factory",
])  # fmt: skip
@pytest.mark.parametrize("row", [
    ROW, ROW | {"tools": None}, {"prompt": [{"role": "developer", "content": "D"}, ASKED],
                                 "chosen": "a", "rejected": "b"},
])  # fmt: skip
def test_a_form_that_cannot_hold_tools_refuses_them(row: Any, line: str, mrpo) -> None:
    write_lines(Path("x.jsonl"), [row])
    error = mrpo(f"data convert x.jsonl {line}", 2).err
    assert "cannot hold the tools, calls, reasoning or roles" in error
    assert not Path(line.split()[0]).exists()


def test_they_are_shown(mrpo) -> None:
    load(ROW)
    shown = mrpo("data show x.jsonl").out
    assert f"tools: {TOOLS_TEXT}" in shown
    assert 'assistant: {"name":"f","arguments":{"b":1,"a":[true,null]}}' in shown
    assert "[rejected] Hm.\n" in shown
    assert json.loads(mrpo("data show x.jsonl --json").out)["first"][0]["tools"] == [TOOL]


def test_saved_groups_hold_them(cache: Cache, store) -> None:
    group, plain = only(ROW), only({"prompt": "R", "chosen": "a", "rejected": "b"})
    store.append(rows_of([group, plain]))
    cache.save_groups("some", [group, plain])
    assert [datasets.group_from_row(row) for row in cache.groups_table().to_pylist()] == [
        group,
        plain,
    ]
    pairs = export_pairs(cache, store)
    assert (pairs.table.num_rows, pairs.skipped["groups of more than text"]) == (1, 1)
    with open_sql(cache.path) as database:
        (asked,) = database.query("SELECT tools, prompt FROM groups WHERE turns = 3").to_pylist()
        rows = database.query("SELECT tool_calls, reasoning_content FROM responses").to_pylist()
    assert json.loads(asked["tools"]) == [TOOL]
    assert '{"name":"f","arguments":{"b":1,"a":[true,null]}}' in asked["prompt"]
    assert [row["reasoning_content"] for row in rows if row["reasoning_content"]] == ["Hm."]
    calls = [json.loads(row["tool_calls"]) for row in rows if row["tool_calls"]]
    assert calls == [[ANSWER.as_dict()]]


def test_a_file_of_before_is_read(cache: Cache, store) -> None:
    """Without the column for them, in ranking, export and SQL."""
    plain = only({"prompt": "R", "chosen": "a", "rejected": "b"})
    store.append(rows_of([plain]))
    path = cache.save_groups("some", [plain])
    saved = datasets.load(path)
    path.unlink()
    datasets.write(
        path.parent, saved.table.drop_columns("structured"), saved.created, saved.content
    )
    assert [datasets.group_from_row(row) for row in cache.groups_table().to_pylist()] == [plain]
    with open_sql(cache.path) as database:
        assert database.query("SELECT tools, turns FROM groups").to_pylist() == [
            {"tools": None, "turns": 1}]  # fmt: skip
        assert database.query("SELECT content FROM responses").num_rows == 2
    before = sorted(path.parent.iterdir())
    cache.save_groups("some", [plain])
    assert sorted(path.parent.iterdir()) == before, "the same rows are not written again"
