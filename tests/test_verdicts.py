"""Two responses and a verdict: what names the better one, and what a wrong reading looks like."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from small_data import write_lines

from mrpo_tools.errors import DataError, UsageError
from mrpo_tools.sources import Source, load_groups

pytestmark = pytest.mark.usefixtures("here")


def load(rows: list[dict[str, Any]], **options: Any) -> Source:
    return load_groups(write_lines(Path("x.jsonl"), rows), **options)


def labelled(labels: list[Any], column: str = "label") -> list[dict[str, Any]]:
    """Instructions with two outputs of which a column names the better."""
    return [
        {"ask": f"Q{n}", "output_1": f"a{n}", "output_2": f"b{n}", column: label}
        for n, label in enumerate(labels)
    ]


def winners(source: Source) -> str:
    """`a` or `b` for each group's chosen response, `-` for a tie."""
    chosen = [[r.content[0] for r in group.responses if r.chosen] for group in source.groups]
    for group in source.groups:
        assert sum(response.score for response in group.responses) == pytest.approx(1)
    return "".join(names[0] if names else "-" for names in chosen)


def refusal(error: pytest.ExceptionInfo[UsageError]) -> str:
    return f"{error.value}\n{error.value.hint}"


AS_STRENGTH = {"prompt": "ask", "response_1": "output_1", "response_2": "output_2",
               "preference_strength": "label"}  # fmt: skip
AS_PAIR = {"prompt": "ask", "a": "output_1", "b": "output_2"}


def test_labels_of_one_and_two_are_no_strength() -> None:
    """A strength is negative where the first is better, so these would make the second win always.
    The hint leads to a reading with 42 of 100 for the first."""
    rows = labelled([1 if n % 50 < 21 else 2 for n in range(100)])
    with pytest.raises(UsageError) as error:
        load(rows, mapping=AS_STRENGTH)
    assert str(error.value) == (
        "x.jsonl: label prefers the second response in all 100 groups that it decides, as the "
        "adapter helpsteer2-preference reads it"
    )
    assert "--map a=output_1,b=output_2,winner=label" in error.value.hint
    source = load(rows, mapping={**AS_PAIR, "winner": "label"})
    assert winners(source).count("a") == source.counts["first_preferred"] == 42
    assert source.counts["second_preferred"] == 58


def test_a_verdict_that_is_right_may_be_said_as_an_order() -> None:
    rows = labelled(["b"] * 20)
    with pytest.raises(UsageError) as error:
        load(rows, mapping={**AS_PAIR, "winner": "label"})
    assert "--map chosen=output_2,rejected=output_1" in error.value.hint
    in_order = {"prompt": "ask", "chosen": "output_2", "rejected": "output_1"}
    assert {group.responses[0].content[0] for group in load(rows, mapping=in_order).groups} == {"b"}


@pytest.mark.parametrize(("number", "counted"), [(5, 0), (6, 6), (19, 19)])
def test_a_few_verdicts_for_one_side_are_a_warning(number: int, counted: int, mrpo) -> None:
    rows = labelled([1] * number + ["tie"])
    assert (
        load(rows, mapping={**AS_PAIR, "winner": "label"}).counts["one_sided_verdicts"] == counted
    )
    printed = mrpo("data validate x.jsonl --map prompt=ask,a=output_1,b=output_2,winner=label").err
    assert ("warning: " in printed) == bool(counted)


@pytest.mark.parametrize("strength", [-4, 3.5, 100])
def test_a_strength_outside_its_range_is_refused(strength: float) -> None:
    with pytest.raises(DataError) as error:
        load(labelled([1, -1, strength]), mapping=AS_STRENGTH)
    (problem,) = error.value.problems
    assert str(problem) == (
        f"x.jsonl:3: label: found the number {strength:g}, expected a number from -3 to 3"
    )


@pytest.mark.parametrize(
    ("column", "labels", "expected"),
    [
        ("winner", ["a", "b", "tie", "A ", "model_b", "response 1", "option-2"], "ab-abab"),
        ("winner", ["tie (bothbad)", "both_bad", "Draw", "neither", "first", "2"], "----ab"),
        ("winner", [1, 2, 1.0, 2.0], "abab"),
        ("winner_index", [0, 1, False, True], "abab"),
        ("a_wins", [0, 1, False, True], "baba"),
    ],
)
def test_a_verdict_is_read_as_its_name_says(column: str, labels: list, expected: str) -> None:
    assert winners(load(labelled(labels), mapping={**AS_PAIR, column: "label"})) == expected


@pytest.mark.parametrize("label", [0, 3, 1.5, True, "0", "c", "modelled", "", None, [1], "tied up"])
def test_a_verdict_that_may_mean_anything_is_refused(label: Any) -> None:
    with pytest.raises(DataError) as error:
        load(labelled(["a", "b", label]), mapping={**AS_PAIR, "winner": "label"})
    (problem,) = error.value.problems
    assert str(problem).startswith("x.jsonl:3: label: found ")
    assert "map the column to winner_index" in str(problem)


@pytest.mark.parametrize(
    ("adapter", "row", "problem"),
    [
        ("alpaca-farm", {"preference": 3}, "preference: found the number 3, expected 1 (the"),
        ("alpaca-farm", {"preference": 0.5}, "preference: found the number 0.5, expected 1 (the"),
        ("alpaca-farm", {"preference": None}, "preference: found null, expected 1 (the first)"),
    ],
)
def test_a_number_outside_a_layouts_meaning_is_refused(adapter, row, problem) -> None:
    good = {"instruction": "Q", "output_1": "a", "output_2": "b", "preference": 1}
    with pytest.raises(DataError) as error:
        load([good, good | row], adapter=adapter)
    assert str(error.value.problems[0]).startswith(f"x.jsonl:2: {problem}")


def test_safe_rlhf_has_two_verdicts() -> None:
    row = {"prompt": "Q", "response_0": "a", "response_1": "b"}
    rows = [row | {"better_response_id": 1, "safer_response_id": 0}]
    assert winners(load(rows)) == winners(load(rows, score="better")) == "b"
    assert winners(load(rows, score="safer")) == "a"


def battle(prompt: Any, first: Any, second: Any, *marks: int) -> dict[str, Any]:
    names = ("winner_model_a", "winner_model_b", "winner_tie")
    texts = {"prompt": prompt, "response_a": first, "response_b": second}
    return texts | dict(zip(names, marks, strict=True))


def test_the_lmsys_competition_as_it_is_downloaded() -> None:
    """A CSV of JSON in text, with quotes and line feeds inside."""
    rows = [
        battle('["Say \\"hi\\""]', '["hi\\nyou"]', '["no"]', 0, 1, 0),
        battle('["4"]', '["5"]', '["6"]', 1, 0, 0),
        battle('["Q"]', '["a"]', '["b"]', 0, 0, 1),
    ]
    with Path("train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    source = load_groups("train.csv")
    assert source.adapter == "lmsys"
    first, second, third = source.groups
    assert first.prompt[0].content == 'Say "hi"'
    assert [(r.content, r.score) for r in first.responses] == [("hi\nyou", 0.0), ("no", 1.0)]
    assert [(r.content, r.score) for r in second.responses] == [("5", 1.0), ("6", 0.0)]
    assert [(r.content, r.score) for r in third.responses] == [("a", 0.5), ("b", 0.5)]
    assert source.counts["tied_groups"] == 1


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (battle('["Q"', '["a"]', '["b"]', 1, 0, 0), "prompt: not JSON: ends in the middle of a "),
        (battle('["Q"]', '[null]', '["b"]', 1, 0, 0), "response_a[0]: found null, expected text"),
        (battle('["Q"]', '["a"]', '["b", "c"]', 1, 0, 0), "prompt: holds more or fewer turns than"),
        (battle('["Q"]', '["a"]', '["b"]', 1, 0, 1), "winner_model_a: 2 of the three verdicts are"),
        (battle('["Q"]', '["a"]', '["b"]', 0, 0, 0), "winner_model_a: 0 of the three verdicts are"),
        (battle('["Q"]', '["a"]', '["b"]', 5, 0, 0), "winner_model_a: found the number 5, "),
        (battle('["Q", "R"]', '["a", "c"]', '["b", "c"]', 1, 0, 0),
         "response_a: the response is assistant user assistant; expected one assistant message"),
    ],
)  # fmt: skip
def test_a_battle_that_cannot_be_read_says_why(row: dict[str, Any], problem: str) -> None:
    good = battle('["Q"]', '["a"]', '["b"]', 1, 0, 0)
    with pytest.raises(DataError) as error:
        load([good] * 9 + [row])
    assert str(error.value.problems[0]).startswith(f"x.jsonl:10: {problem}")


def test_a_map_reaches_into_objects_and_lists() -> None:
    rows = [
        {"input": {"messages": [{"role": "user", "content": f"Q{n}"}], "id": "x"},
         "output": {"best": {"text": "a"}, "all": [{"text": "n"}, {"text": "b"}]}}
        for n in range(3)
    ]  # fmt: skip
    mapping = {"prompt": "input.messages", "chosen": "output.best.text",
               "rejected": "output.all.1.text"}  # fmt: skip
    source = load(rows, mapping=mapping)
    assert source.adapter == "pairs"
    assert [r.content for r in source.groups[0].responses] == ["a", "b"]
    assert source.unused == {"input": 3, "output": 3}, "the id, and the other texts"
    rows[1]["output"]["best"]["text"] = 5
    with pytest.raises(DataError) as error:
        load(rows, mapping=mapping)
    assert str(error.value.problems[0]).startswith("x.jsonl:2: output.best.text: found the number")
    with pytest.raises(UsageError) as error:
        load(rows, mapping={**mapping, "prompt": "input.mesages"})
    assert refusal(error) == (
        "--map prompt=input.mesages: there is no column 'input.mesages'\n"
        "did you mean input.messages?"
    )


def test_a_column_with_a_dot_in_its_name_is_that_column() -> None:
    rows = [{"a.b": "Q", "a": {"b": "no"}, "chosen": "x", "rejected": "y"}]
    assert load(rows, mapping={"prompt": "a.b"}).groups[0].prompt[0].content == "Q"


TABLE = [["prompt", "chosen", "rejected"], ["Q, or\nso?", "1", '"2"'], ["R", "true", "é"]]


@pytest.mark.parametrize(("name", "delimiter"), [("x.csv", ","), ("x.tsv", "\t")])
def test_a_table_of_text(name: str, delimiter: str) -> None:
    """Cells stay text: `1` and `true` are responses."""
    with Path(name).open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=delimiter).writerows(TABLE)
    groups = load_groups(name).groups
    rows = [[g.prompt[0].content, *(r.content for r in g.responses)] for g in groups]
    assert rows == TABLE[1:]
    assert {type(text) for row in rows for text in row} == {str}
    json.dumps(groups[0].as_dict())


def read_csv(text: str, **options: Any) -> Source:
    Path("y.csv").write_text(text)
    return load_groups("y.csv", **options)


def test_a_cell_is_a_number_or_a_truth_where_one_is_meant() -> None:
    source = read_csv("prompt,response,reward\nQ,4,0.5\nQ,5,-1e1\n")
    assert [(r.content, r.score) for r in source.groups[0].responses] == [("4", 0.5), ("5", -10.0)]
    source = read_csv("prompt,completion,label\nQ,4,True\nQ,5,0\n")
    assert [(r.content, r.chosen) for r in source.groups[0].responses] == [
        ("4", True),
        ("5", False),
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("prompt,chosen,rejected\nQ,a\n", "y.csv:2: row: found 2 cells, expected 3"),
        ("prompt,chosen,chosen\nQ,a,b\n", "y.csv:1: names: 'chosen' stands twice in"),
        ("prompt,chosen,rejected\n", "y.csv: file: no rows; expected a line of names, then the "),
        ('prompt,chosen,rejected\nQ,"a"b,c\n', "y.csv:2: cells: ',' expected after '\"'"),
        ('prompt,chosen,rejected\nQ,a,b\nR,"a,b\n', "y.csv:3: cells: unexpected end of data"),
        ("prompt,response,reward\nQ,a,1\nQ,b,many\n", "y.csv:3: reward: found the text 'many', "),
        ("prompt,response,reward\nQ,a,1\nQ,b,nan\n", "y.csv:3: reward: found the text 'nan', "),
        ("prompt,chosen,rejected\nQ,a,b\nQ,,b\n", "y.csv:3: chosen: found null, expected text"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table(text: str, problem: str) -> None:
    with pytest.raises(DataError) as error:
        read_csv(text)
    assert str(error.value.problems[0]).startswith(problem)
