"""`mrpo cache export` and `import`: pairs for other programs, and log-probs from them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stores import IDENTITY, rows_of, said, write_lines

from mrpo_tools.cache import Cache
from mrpo_tools.cache.imported import Imported, import_logps
from mrpo_tools.cache.pairs import PAIRS_SCHEMA, TRL_SCHEMA, export_pairs
from mrpo_tools.config import Recipe
from mrpo_tools.errors import DataError, UsageError
from mrpo_tools.groups import Group, Response, user_prompt
from mrpo_tools.maths import contrasts
from mrpo_tools.methods.tensors import look_up
from mrpo_tools.training.train import prepare


@pytest.fixture
def scored() -> list[Group]:
    """A labelled pair, a scored set with a tie, a set of equals, in two splits."""
    labelled = (Response("yes", 1.0, True), Response("no", 3.0, False))
    judged = tuple(Response(f"a{n}", float(score)) for n, score in enumerate([2, 5, 1, 5]))
    return [
        Group(user_prompt("q1", "be brief"), labelled, split="train"),
        Group(user_prompt("q2"), judged, split="train"),
        Group(user_prompt("q3"), (Response("x", 1.0), Response("y", 1.0)), split="test"),
    ]


@pytest.fixture
def bring(filled, scored) -> Callable[..., Imported]:
    """Imports a file's numbers for these groups."""
    return partial(import_logps, filled, groups=scored, origin="elsewhere", dataset="some")


@pytest.fixture
def filled(tmp_path, scored) -> Cache:
    """Their log-probs, −1, −2, …, of 3 tokens each, with `a2` overlong."""
    cache = Cache(tmp_path / "cache")
    cache.store("llama", IDENTITY).append(rows_of(scored, overlong=[4]))
    cache.save_groups("some", scored)
    return cache


def test_export_by_hand(filled, scored):
    """Best against worst of those that have a number: the label, else the score, decides."""
    exported = export_pairs(filled, filled.find("llama"))
    got = [
        (pair["chosen"], pair["ref_chosen_logps"], pair["rejected"], pair["ref_rejected_logps"])
        for pair in exported.table.to_pylist()
    ]
    assert got == [("yes", -1.0, "no", -2.0), ("a1", -4.0, "a0", -3.0)]
    assert exported.skipped == {"overlong": 1, "groups without a pair": 1}
    every = export_pairs(filled, filled.find("llama"), pairing="all").table
    assert every.schema == PAIRS_SCHEMA
    assert sorted(every["chosen"].to_pylist()) == ["a1", "a3", "yes"]
    assert export_pairs(filled, filled.find("llama"), split="test").table.num_rows == 0
    with pytest.raises(UsageError, match=r"saved: some train \(2\), some test \(1\)"):
        export_pairs(filled, filled.find("llama"), split="typo")


@pytest.mark.parametrize(
    ("judged", "overlong", "expected"),
    [
        ("1+ 3+ 2- 0-", [], [("y1", "y3")]),  # scores decide among the chosen and the rejected
        ("3+ 3+ 1- 1-", [], [("y0", "y2")]),  # the first on a tie
        ("2+ 1- 2-", [0], []),
        ("2+ 2-", [], [("y0", "y1")]),  # labels win over a tie
        ("1+ 3-", [], [("y0", "y1")]),  # and over scores that contradict them
        ("2 2", [], []),
        ("2+ 2- 1-", [], [("y0", "y2")]),
        ("3 5 1 5", [1], [("y3", "y2")]),
    ],
)
def test_export_takes_the_pairs_that_training_uses(tmp_path, judged, overlong, expected):
    responses = tuple(
        Response(f"y{n}", float(words[0]), {"+": True, "-": False}.get(words[1:]))
        for n, words in enumerate(judged.split())
    )
    group = Group(user_prompt("q"), responses)
    cache = Cache(tmp_path / "cache")
    cache.save_groups("some", [group])
    store = cache.store("llama", IDENTITY)
    store.append(rows_of([group], overlong))
    rows = export_pairs(cache, store).table.to_pylist()
    assert [(row["chosen"], row["rejected"]) for row in rows] == expected
    tensors = look_up([store], [group])
    pairs = contrasts.pairs(tensors.judged.sides, "best_worst")[0].nonzero().tolist()
    assert [(f"y{better}", f"y{worse}") for better, worse in pairs] == expected


def test_export_leaves_out_what_was_read_cut_unless_asked(tmp_path):
    group = Group(user_prompt("q"), tuple(Response(f"y{n}", float(n)) for n in range(3)))
    cache = Cache(tmp_path / "cache")
    cache.save_groups("some", [group])
    store = cache.store("llama", IDENTITY)
    store.append([replace(row, truncated=n == 2) for n, row in enumerate(rows_of([group]))])
    for truncated, better, skipped in (("drop", "y1", {"truncated": 1}), ("keep", "y2", {})):
        pairs = export_pairs(cache, store, truncated=truncated)
        assert pairs.table["chosen"].to_pylist() == [better]
        assert pairs.skipped == skipped


def test_export_formats(filled, tmp_path, capsys):
    """JSONL and Parquet hold the same rows; TRL's form has its five columns, as messages."""
    common = ["cache", "export", "--ref", "llama", "--cache", str(filled.path)]
    lines = said(capsys, *common).splitlines()
    assert lines[-1].startswith("2 pairs with the log-probs of llama; 1 overlong left out")
    rows = [json.loads(line) for line in lines[:-1]]
    for form in ("jsonl", "parquet", "trl"):
        said(capsys, *common, "--format", form, "-o", str(tmp_path / form))
    assert [json.loads(line) for line in (tmp_path / "jsonl").read_text().splitlines()] == rows
    assert pq.read_table(tmp_path / "parquet").to_pylist() == rows
    trl = pq.read_table(tmp_path / "trl")
    assert trl.schema.names == TRL_SCHEMA.names
    first = trl.to_pylist()[0]
    assert first["prompt"] == [{"role": "system", "content": "be brief"},
                               {"role": "user", "content": "q1"}]  # fmt: skip
    assert first["chosen"] == [{"role": "assistant", "content": "yes"}]
    assert first["ref_rejected_logps"] == -2.0
    assert "inside the cache" in said(capsys, *common, "-o", str(filled.path / "x"), code=2)


def numbers(groups: list[Group]) -> list[dict[str, Any]]:
    keys = [key for group in groups for key in group.response_ids]
    return [{"response_id": key, "logp": -0.5 * n, "num_tokens": n + 1}
            for n, key in enumerate(keys)]  # fmt: skip


def test_import_by_id_by_text_and_by_tokens(bring, filled, scored, tmp_path, capsys):
    """The same numbers in three spellings and two file formats; marked by their origin."""
    by_id = numbers(scored)
    texts = [(group, response) for group in scored for response in group.responses]
    by_text = [
        {"prompt": [turn.as_dict() for turn in group.prompt], "response": response.content,
         "token_logps": [-0.5 * n / (n + 1)] * (n + 1)}
        for n, (group, response) in enumerate(texts)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(by_id), tmp_path / "x.parquet")
    paths = [tmp_path / "x.parquet", write_lines(tmp_path / "a.jsonl", by_id),
             write_lines(tmp_path / "b.jsonl", by_text)]  # fmt: skip
    expected = {row["response_id"]: row["logp"] for row in by_id}
    for n, path in enumerate(paths):
        imported = bring(f"big{n}", path=path, origin="vLLM 0.11")
        assert (imported.rows, imported.reused, imported.ignored) == (8, 0, 0)
        table = imported.store.table()
        logps = dict(zip(*(table[c].to_pylist() for c in ("response_id", "logp")), strict=True))
        assert logps == pytest.approx(expected, abs=1e-12)
        assert table["num_tokens"].to_pylist() == list(range(1, 9))
        again = bring(f"big{n}", path=path, origin="vLLM 0.11")
        assert (again.rows, again.reused) == (0, 8)
    assert "vLLM 0.11" in said(capsys, "cache", "status", "--cache", str(filled.path))
    names = ["llama", "big0"]
    tensors = look_up([filled.find(name) for name in names], scored)
    assert tensors.logps[0, :2, 1].tolist() == [0.0, -0.5]
    differing = filled.find("llama").identity.differences(filled.find("big0").identity)
    assert ("origin", None, "vLLM 0.11") in differing


def test_training_takes_imported_numbers(cached, references, some_groups, tmp_path):
    """As a reference beside others; as reference 1 only with a policy to start from."""
    cache = Cache(shutil.copytree(cached.path, tmp_path / "cache"))
    file = write_lines(tmp_path / "x.jsonl", numbers(some_groups))
    import_logps(cache, "big", some_groups, file, origin="elsewhere", dataset="some")
    recipe = Recipe(loss="mrpo", refs=["llama", "big"])
    prepared = prepare(recipe, some_groups, cache, {"llama": references["llama"]})
    expected = {row["response_id"]: row["logp"] for row in numbers(some_groups)}
    for g, group in enumerate(prepared.groups):
        for n, key in enumerate(group.response_ids):
            assert prepared.training.tensors.logps[g, n, 1] == expected[key]
    alone = recipe.model_copy(update={"refs": ["big", "llama"]})
    with pytest.raises(UsageError, match="does not say where the model of reference 'big' is"):
        prepare(alone, some_groups, cache, {})
    policy = alone.model_copy(update={"policy": references["llama"].model})
    assert prepare(policy, some_groups, cache, {}).groups


BAD = {
    "not finite": ({"logp": float("nan")}, "logp: a finite number, not above 0, is needed"),
    "infinite": ({"logp": float("-inf")}, "logp: a finite number, not above 0"),
    "positive": ({"logp": 0.1}, "logp: a finite number, not above 0, is needed, found 0.1"),
    "text": ({"logp": "-1"}, "logp: a finite number, not above 0, is needed, found '-1'"),
    "no number": ({"logp": None}, "logp: a finite number, not above 0, is needed, found None"),
    "no tokens": ({"num_tokens": 0}, "num_tokens: a whole number from 1 to 2,147,483,647"),
    "too many tokens": ({"num_tokens": 2**31}, "num_tokens: a whole number from 1 to 2,147,483,64"),
    "beyond floats": ({"logp": -(10**400)}, "logp: a finite number, not above 0, is needed"),
    "beyond together": ({"token_logps": [-1.7e308] * 2}, "token_logps: their sum is not finite"),
    "beyond in a token": ({"token_logps": [-(10**400)]}, "token_logps: a list of finite numbers"),
    "token above 0": ({"token_logps": [-1, 0.5]}, "token_logps: a list of finite numbers"),
    "no id": ({"response_id": None}, "response_id: it is needed, or prompt and response"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_log_prob_is_refused(bring, filled, scored, tmp_path, kind):
    """With file and line, and nothing written."""
    change, message = BAD[kind]
    rows = numbers(scored)
    rows[3] |= change
    path = write_lines(tmp_path / "x.jsonl", rows)
    with pytest.raises(DataError) as raised:
        bring("big", path=path)
    assert f"{path}:4: {message}" in str(raised.value)
    assert [store.name for store in filled.references()] == ["llama"]


def test_incomplete_contradictory_and_broken_files_are_refused(
    bring, filled, scored, tmp_path, capsys
):
    rows = numbers(scored)
    for lines, message in (
        (rows[:-2], "6 of 8 responses have a row"),
        ([*rows, {**rows[0], "logp": -9.0}], "another row gives this response another number"),
        ([*rows, "{"], ":9: ends in the middle of a value"),
    ):
        path = write_lines(tmp_path / "x.jsonl", lines)
        with pytest.raises(DataError, match=message):
            bring("big", path=path)
    good = write_lines(tmp_path / "x.jsonl", [*rows, {**rows[0], "response_id": "f" * 32}])
    assert bring("big", path=good).ignored == 1
    rows[0]["logp"] = -3.0
    other = write_lines(tmp_path / "y.jsonl", rows)
    with pytest.raises(DataError, match="other numbers were imported into big"):
        bring("big", path=other)
    bring("big", path=other, origin="elsewhere, again")
    words = ["cache", "export", "--ref", "big", "--cache", str(filled.path)]
    assert "they differ in origin" in said(capsys, *words, code=3)


def test_the_commands_need_no_torch(filled, scored, tmp_path):
    """Each of them, in a process where torch and transformers cannot be imported; `sql` too."""
    data = write_lines(tmp_path / "data.jsonl", [group.as_dict() for group in scored])
    file = write_lines(tmp_path / "x.jsonl", numbers(scored))
    commands = [
        *(f"cache {verb}" for verb in ("status", "verify", "compact", "repair", "upgrade")),
        "cache diff llama llama", "cache export --ref llama",
        f"cache import {file} --ref big --origin x --dataset {data}",
        "sql 'SELECT weight FROM weights()' --format csv",
    ]  # fmt: skip
    program = (
        "import json, shlex, sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from mrpo_tools.cli import run\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    assert run([*shlex.split(words), '--cache', sys.argv[2]]) == 0, words\n"
    )
    command = [sys.executable, "-c", program, json.dumps(commands), str(filled.path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    _, weights = result.stdout.split("\nweight\n")  # of two references
    assert len(weights.split()) == 2 * len(scored)
