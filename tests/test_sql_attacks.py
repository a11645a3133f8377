"""What a query must not do: read or write anything but the views, or outgrow its limits."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import psutil
import pyarrow as pa
import pytest
from sql_world import ROOT, cache_of, identity, one_column, row

from mrpo_tools.errors import MrpoError, ResourceError, UsageError
from mrpo_tools.groups import Group, Response, user_prompt
from mrpo_tools.sql import MACROS, open_sql, write
from mrpo_tools.sql.sandbox import check_statement

SECRET = "the-secret-nobody-may-read"

# {secret} a text file, {part} a part of the cache, {out} a place to write to, {cache} the cache;
# " | " parts statements of one line, and one with a {reader} is a statement for each of READERS.
READERS = (
    "read_csv", "read_text", "READ_TEXT", '"read_text"', "system.main.read_text", "read_blob",
    "read_json", "read_ndjson_objects", "read_json_auto", "sniff_csv",
)  # fmt: skip
ATTACKS = {
    "files read by a table function": """
        SELECT * FROM {reader}('{secret}')
        SELECT * FROM read_parquet('{part}') | SELECT * FROM parquet_scan('{part}')
        SELECT * FROM parquet_metadata('{part}') | SELECT * FROM parquet_kv_metadata('{part}')
        SELECT * FROM parquet_schema('{part}') | SELECT * FROM read_duckdb('{out}.duckdb')
        SELECT * FROM glob('{cache}/*')
        SELECT (SELECT content FROM read_text('{secret}'))
        SELECT * FROM refs WHERE name IN (SELECT content FROM read_text('{secret}'))
        SELECT * FROM refs, LATERAL (SELECT * FROM read_text('{secret}'))
        WITH x AS (SELECT * FROM read_text('{secret}')) SELECT * FROM x
        SELECT 1 UNION ALL SELECT size FROM read_text('{secret}')
        FROM read_text('{secret}') SELECT content
        EXPLAIN ANALYZE SELECT * FROM read_text('{secret}')
        DESCRIBE SELECT * FROM read_csv('{secret}') | SUMMARIZE SELECT * FROM read_csv('{secret}')
    """,
    "files read as a table": """
        SELECT * FROM '{secret}' | FROM '{part}' | FROM "{part}" | DESCRIBE '{part}'
        SELECT * FROM query_table('{part}')
    """,
    "queries inside texts": """
        SELECT * FROM query('SELECT * FROM read_text(''{secret}'')')
        FROM json_execute_serialized_sql(json_serialize_sql('FROM read_text(''{secret}'')'))
    """,
    "files written": """
        COPY logps TO '{out}.csv' | COPY logps TO '{out}.parquet' (FORMAT parquet)
        COPY (SELECT * FROM logps) TO '{out}' (FORMAT parquet, PARTITION_BY (reference))
        COPY (SELECT 1) TO '{part}' | COPY logps FROM '{secret}'
        COPY FROM DATABASE memory TO other | EXPORT DATABASE '{out}' | IMPORT DATABASE '{cache}'
        EXPLAIN COPY logps TO '{out}.csv' | EXPLAIN ANALYZE COPY logps TO '{out}.csv'
        EXPLAIN (ANALYZE) COPY (SELECT 1) TO '{out}.csv'
        EXPLAIN /* */ ANALYZE COPY (SELECT 1) TO '{out}.csv'
        EXPLAIN ANALYZE EXPLAIN ANALYZE COPY (SELECT 1) TO '{out}.csv'
        WITH x AS (COPY (SELECT 1) TO '{out}.csv') SELECT 1
        WITH x AS (COPY (SELECT 1) TO '{out}.csv') SELECT * FROM x
        WITH RECURSIVE x AS (COPY (SELECT 1) TO '{out}.csv') SELECT * FROM x
        SELECT * FROM (WITH x AS (COPY (SELECT 1) TO '{out}.csv') SELECT * FROM x)
        SELECT (WITH x AS (COPY (SELECT 1) TO '{out}.csv') SELECT 1)
        WITH a AS (WITH x AS (COPY (SELECT 1) TO '{out}.csv') SELECT 1) SELECT * FROM a
        EXPLAIN ANALYZE WITH x AS (COPY (SELECT 1) TO '{out}.csv') SELECT 1
        SELECT * FROM enable_logging(storage := 'file', storage_path := '{out}')
        CALL enable_logging('QueryLog', storage := 'file', storage_path := '{out}')
        SELECT * FROM enable_profiling(save_location := '{out}.json')
    """,
    "tables and views changed": """
        INSERT INTO logps SELECT * FROM logps
        UPDATE logps SET logp = 0 | DELETE FROM logps | TRUNCATE logps
        MERGE INTO logps USING refs ON logps.reference = refs.reference WHEN MATCHED THEN DELETE
        WITH x AS (INSERT INTO stored_refs SELECT * FROM stored_refs RETURNING name) SELECT * FROM x
        WITH x AS (DELETE FROM logps RETURNING logp) SELECT * FROM x
        WITH x AS (UPDATE logps SET logp = 0 RETURNING logp) SELECT * FROM x
        CREATE TABLE t AS SELECT 1 | CREATE TEMP TABLE t (a INT) | CREATE VIEW v AS SELECT 1
        CREATE OR REPLACE VIEW logps AS SELECT 1
        CREATE MACRO margins(a) AS a | CREATE SEQUENCE s | CREATE TYPE mood AS ENUM ('good')
        CREATE SCHEMA s
        CREATE SECRET s (TYPE s3, KEY_ID 'a', SECRET 'b')
        CREATE INDEX i ON logps (logp)
        DROP VIEW logps | DROP MACRO TABLE margins | ALTER VIEW logps RENAME TO gone
        COMMENT ON VIEW logps IS 'x'
        PIVOT logps ON reference USING sum(logp)
        SELECT 1 INTO t
    """,
    "other databases and code": """
        ATTACH '{out}.duckdb' AS other | ATTACH ':memory:' AS other | DETACH memory | USE temp
        INSTALL httpfs | FORCE INSTALL httpfs FROM community | LOAD httpfs | LOAD '{secret}'
        UPDATE EXTENSIONS
        SELECT * FROM read_csv('https://example.org/x.csv')
        FROM 'https://example.org/x.parquet' | FROM 's3://bucket/x.parquet'
        SELECT * FROM arrow_scan(1, 2, 3) | SELECT * FROM pandas_scan(1)
        SELECT * FROM python_map_function((SELECT 1))
        SELECT * FROM create_external_resource(type := 'x', params := MAP {})
    """,
    "settings": """
        SET memory_limit = '100GB' | SET GLOBAL enable_external_access = true
        SET lock_configuration = false | SET python_enable_replacements = true
        SET VARIABLE x = 1 | RESET memory_limit | PRAGMA database_list | PRAGMA enable_profiling
        PRAGMA memory_limit = '100GB' | CALL pragma_version()
    """,
    "more than one statement, or none that asks": """
        SELECT 1; DROP VIEW logps
        SELECT 1; COPY (SELECT 1) TO '{out}.csv'
        COPY (SELECT 1) TO '{out}.csv'; SELECT 1
        SELECT 1;; SELECT 2
        PREPARE p AS SELECT 1 | EXECUTE p | BEGIN TRANSACTION | COMMIT | ROLLBACK | CHECKPOINT
        FORCE CHECKPOINT | VACUUM | ANALYZE | SELECT * FROM force_checkpoint()
    """,
    "the surroundings": """
        SELECT getenv('MRPO_SECRET') | SELECT * FROM duckdb_secrets()
        SELECT * FROM hidden_variable | SELECT * FROM ATTACKS | SELECT pg_read_file('{secret}')
        SELECT * FROM shell('ls') | SELECT * FROM duckdb_settings()
    """,
}


def statements(kind: str) -> Iterator[str]:
    """Every statement of a kind of attack."""
    for statement in re.split(r" \| |\n", ATTACKS[kind].strip()):
        for reader in READERS if "{reader}" in statement else [""]:
            yield statement.strip().replace("{reader}", reader)


STATEMENTS = {f"{kind}: {each[:60]}": each for kind in ATTACKS for each in statements(kind)}
HARMLESS = [
    "SELECT 'COPY x TO y; DROP VIEW logps' AS text, '\"type\":\"COPY_QUERY_NODE\"' AS other",
    "SELECT 1 -- ; DROP VIEW logps",
    "SELECT 1 /* COPY logps TO 'x' */;",
    "WITH x AS (SELECT 1 AS a) SELECT a FROM x",
    "WITH RECURSIVE x AS (SELECT 1 AS a UNION ALL SELECT a + 1 FROM x WHERE a < 5) FROM x",
    "FROM logps SELECT count(*)",
    "SELECT reference FROM logps INTERSECT SELECT reference FROM refs",
    "TABLE refs",
    "VALUES (1), (2)",
    "SHOW TABLES",
    "DESCRIBE logps",
    "SUMMARIZE logps",
    "EXPLAIN SELECT 1",
    "  explain analyze SELECT count(*) FROM logps;",
    "SELECT current_setting('memory_limit'), getvariable('x'), version()",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM generate_series(1, 3), unnest([1, 2]) AS u(x), json_each('[1]')",
    "SELECT * FROM (PIVOT logps ON reference IN ('m', 'n') USING count(*))",
    "SELECT write_log('x')",
]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A cache, a secret beside it, and a working directory to leave traces in."""
    root = tmp_path_factory.mktemp("attacks")
    group = Group(user_prompt("p"), (Response("a", 1.0), Response("b", 0.0)))
    cache = cache_of(root / "cache", [group])
    for name in ("m", "n"):
        cache.store(name, identity(name)).append([row(group, place, -1.0) for place in (0, 1)])
    (root / "secret.txt").write_text(SECRET)
    (root / "work").mkdir()
    return root


def snapshot(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def filled(statement: str, root: Path) -> str:
    part = next(root.glob("cache/references/m-*/part-*"))
    for mark, path in {"{secret}": "secret.txt", "{part}": part, "{out}": "work/out",
                       "{cache}": "cache"}.items():  # fmt: skip
        statement = statement.replace(mark, str(root / path))
    return statement


@pytest.fixture(scope="module")
def database(scene):
    with open_sql(scene / "cache") as opened:
        yield opened


@pytest.fixture(autouse=True)
def untouched(scene, monkeypatch):
    """Nothing on the disk changes, whatever a test does."""
    monkeypatch.chdir(scene / "work")
    monkeypatch.setenv("MRPO_SECRET", SECRET)
    before = snapshot(scene)
    yield
    assert snapshot(scene) == before


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS)
def test_attacks_are_refused(scene, database, statement):
    views = database.query("SHOW TABLES").to_pylist()
    with pytest.raises(MrpoError) as caught:
        database.query(filled(statement, scene), timeout=10)
    assert isinstance(caught.value, UsageError)
    assert SECRET not in str(caught.value)
    assert database.query("SHOW TABLES").to_pylist() == views
    assert one_column(database, "SELECT count(*) FROM logps") == [4]


@pytest.mark.parametrize("statement", HARMLESS)
def test_what_only_looks_like_an_attack_is_answered(database, statement):
    assert database.query(statement).num_rows > 0


@pytest.mark.parametrize("kind", ATTACKS)
def test_the_engines_own_settings_hold_alone(scene, kind):
    """The same statements without a look at them: no file is read or written even so."""
    hidden_variable = pa.table({"secret": [SECRET]})
    assert hidden_variable.num_rows == 1
    with open_sql(scene / "cache") as database:
        connection = database._connection
        for statement in statements(kind):
            try:
                rows = connection.execute(filled(statement, scene)).fetchall()
            except duckdb.Error as error:
                rows = [str(error)]
            assert SECRET not in str(rows), statement
            limit = connection.execute("SELECT current_setting('memory_limit')").fetchall()
            assert limit == [("1.8 GiB",)], statement


def test_the_settings_are_set(database):
    """Each of them, for some cover for others; none tells where the user lives."""
    expected = {
        "secret_directory": "", "temp_directory": "", "max_temp_directory_size": "0 bytes",
        "python_enable_replacements": "false", "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false", "allow_community_extensions": "false",
        "enable_external_access": "false", "lock_configuration": "true",
    }  # fmt: skip
    for name, value in expected.items():
        values = one_column(database, "SELECT current_setting($name)::VARCHAR", name=name)
        assert values == [value], name


def test_the_look_at_a_statement_holds_alone(scene):
    """With every setting open, only files named as tables get past it."""
    connection = duckdb.connect()
    macros = frozenset(macro.name for macro in MACROS)
    for statement in (filled(statement, scene) for statement in STATEMENTS.values()):
        try:
            check_statement(connection, statement, macros)
        except (MrpoError, duckdb.Error):
            continue
        named_as_table = statement.startswith(("SELECT * FROM '", "FROM '", 'FROM "', "DESCRIBE '"))
        unknown = statement.startswith(("SELECT getenv", "SELECT pg_read", "SELECT * FROM hidden"))
        assert named_as_table or unknown or statement == "SELECT * FROM ATTACKS", statement


def test_a_transaction_that_only_reads_holds_alone(database):
    """A statement that both other walls would miss still cannot write into memory."""
    database.query("SELECT 1")
    database._connection.execute("ROLLBACK")
    database._connection.execute("CREATE TABLE treasure AS SELECT 1 AS gold")
    stream = database.stream("SELECT 1")
    for statement in ("DELETE FROM treasure", "CREATE TABLE other (a INT)", "DROP TABLE treasure"):
        database._reader.close()
        with pytest.raises(duckdb.Error, match="read-only"):
            database._connection.execute(statement)
        database._connection.execute("ROLLBACK; BEGIN TRANSACTION READ ONLY")
    del stream
    database.query("SELECT 1")
    database._connection.execute("ROLLBACK; DROP TABLE treasure")


def test_parameters_are_values(database):
    text = "'; DROP VIEW logps; --"
    assert one_column(database, "SELECT $a", a=text) == [text]
    with pytest.raises(UsageError):
        database.query("SELECT * FROM read_text($a)", {"a": "secret.txt"})


ENDLESS = "WITH RECURSIVE t AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM t) SELECT count(*) FROM t"
BOMBS = {
    "endless recursion": (ENDLESS, MrpoError),
    "recursion that doubles": (
        "WITH RECURSIVE t AS (SELECT 'a' AS x UNION ALL SELECT x || x FROM t) "
        "SELECT max(length(x)) FROM t", ResourceError,
    ),
    "a long list": ("SELECT list(range) FROM range(10000000000)", ResourceError),
    "a big sort": ("SELECT * FROM range(1000000000) ORDER BY hash(range)", ResourceError),
    "a long text": ("SELECT string_agg(repeat('x', 1000000)) FROM range(100000)", ResourceError),
    "a cross join": (
        "SELECT sum(hash(a.range, b.range)) FROM range(1000000) a, range(1000000) b", MrpoError,
    ),
    "a result without end": ("SELECT * FROM range(10000000000000)", MrpoError),
    "sleep": ("SELECT sleep_ms(60000)", MrpoError),
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_end_within_their_limits(scene, kind):
    """And the same connection answers the next query.

    What fills the memory has time to do so on a slow machine; what only takes time has 0.7 s.
    """
    statement, error = BOMBS[kind]
    timeout = 60 if error is ResourceError else 0.7
    with open_sql(scene / "cache", memory_limit="200MB") as database:
        started = time.monotonic()
        with pytest.raises(error) as caught:
            database.query(statement, timeout=timeout)
        assert time.monotonic() - started < timeout + 10
        assert caught.value.exit_code in (1, 4)
        assert caught.value.hint
        assert not database.stuck
        assert one_column(database, "SELECT count(*) FROM refs") == [2]


DEAF = {
    "one text too long for the engine to count":
        ("SELECT length(repeat(repeat('x', 1000000), 4000))", (4,)),
    "one function that never listens":
        ("SELECT levenshtein(repeat('a', 300000), repeat('b', 300000))", (1,)),
    "a plan of a million million tables": (
        "WITH t0 AS (SELECT 1), "
        + ", ".join(f"t{n} AS (SELECT * FROM t{n - 1} a, t{n - 1} b)" for n in range(1, 40))
        + " SELECT count(*) FROM t39",
        (1, 4),
    ),
}  # fmt: skip


DEEP = {
    "JSON to VARIANT": "SELECT (repeat('[', 1000000) || repeat(']', 1000000))::JSON::VARIANT",
    "a structure of from_json":
        "SELECT from_json('[1]', repeat('[', 1000000) || '\"INT\"' || repeat(']', 1000000))",
}  # fmt: skip
SELF_JOINS = {
    "many columns": "SELECT * FROM " + ", ".join(f"refs r{n}" for n in range(16)),
    "a long plan": "SELECT count(*) FROM " + ", ".join(f"refs r{n}" for n in range(400)),
    "natural": "SELECT * FROM refs " + " ".join(f"NATURAL JOIN refs r{n}" for n in range(600)),
}


def start_sql(scene: Path, *arguments: str) -> psutil.Popen:
    """`mrpo sql` in a process of its own."""
    command = [sys.executable, "-m", "mrpo_tools", "sql", *arguments]
    return psutil.Popen([*command, "--cache", str(scene / "cache")], stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
                        text=True, preexec_fn=interruptible)  # fmt: skip


def interruptible() -> None:
    """Ctrl-C reaches it, also where the tests run in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def peak_and_seconds(process: psutil.Popen) -> tuple[int, float]:
    """The most bytes that a process or a child of it held until its end, and how long it took."""
    started, peak = time.monotonic(), 0
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            held = [one.memory_info().rss for one in (process, *process.children())]
            peak = max(peak, *held)
        time.sleep(0.01)
    return peak, time.monotonic() - started


def told(process: psutil.Popen) -> str:
    """What a process said that ended with an error alone."""
    out, err = process.communicate()
    assert out == ""
    assert [line.split(":")[0] for line in err.splitlines()] == ["error", "next"]
    return err


@pytest.mark.parametrize("kind", DEAF)
def test_a_query_that_cannot_be_interrupted_ends_with_its_process(scene, kind):
    statement, codes = DEAF[kind]
    process = start_sql(scene, statement, "--timeout", "1", "--memory-limit", "200MB")
    peak, seconds = peak_and_seconds(process)
    assert seconds < 15
    assert process.returncode in codes
    assert 0 < peak < 2**30
    told(process)


@pytest.mark.parametrize("kind", DEEP)
def test_a_query_that_ends_the_engine_is_an_error(scene, kind, tmp_path):
    """No signal, no core, no half file: one line, and the file that was there stays."""
    output = tmp_path / "out.csv"
    output.write_text("mine")
    process = start_sql(scene, DEEP[kind], "-o", str(output))
    assert "the query ended the engine (SIGSEGV)" in told(process)
    assert process.returncode == 1
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("kind", SELF_JOINS)
def test_the_limits_hold_within_a_factor_of_two(scene, kind):
    """Beyond what a query that asks for nothing takes, measured beside it."""
    words = ("--timeout", "4", "--memory-limit", "300MB", "-o", "/dev/null")
    idle = start_sql(scene, "SELECT 1", *words)
    idle_peak, idle_seconds = peak_and_seconds(idle)
    assert idle.communicate() == ("", "")
    process = start_sql(scene, SELF_JOINS[kind], *words)
    peak, seconds = peak_and_seconds(process)
    told(process)
    assert process.returncode in (1, 4)
    assert peak - idle_peak < 2 * 300e6
    assert seconds - 2 * idle_seconds < 2 * 4


def test_a_query_ends_with_the_process_that_asked(scene):
    """Killed outright, it leaves none behind."""
    process = start_sql(scene, ENDLESS)
    while sum(child.cpu_times().user for child in process.children()) < 1.5:
        time.sleep(0.05)
    children = process.children()
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_a_connection_that_is_stuck_says_so(scene):
    """In a process of its own: the thread it leaves behind ends with it."""
    program = """
import os, sys
from mrpo_tools.errors import MrpoError
from mrpo_tools.sql import open_sql

database = open_sql(sys.argv[1])
for query in ("SELECT levenshtein(repeat('a', 99999), repeat('b', 99999))", "SELECT 1"):
    try:
        database.query(query, timeout=0.2)
    except MrpoError as error:
        print(database.stuck, error, flush=True)
database.close()
os._exit(0)
"""
    result = subprocess.run([sys.executable, "-c", program, str(scene / "cache")], cwd=ROOT,
                            capture_output=True, timeout=60, text=True, check=False)  # fmt: skip
    first, second = result.stdout.splitlines()
    assert first == "True the query was stopped after 0.2 seconds"
    assert second == "True an earlier query could not be stopped"


def test_ctrl_c_stops_a_query(scene):
    process = start_sql(scene, ENDLESS)
    while sum(child.cpu_times().user for child in process.children()) < 1.5:  # busy with the query
        time.sleep(0.05)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert time.monotonic() - started < 60
    assert process.returncode == 130
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT " + "(" * 50_000 + "1" + ")" * 50_000,
        "SELECT " + "+".join("1" for _ in range(20_000)),
        "SELECT * FROM (" * 3_000 + "SELECT 1" + ")" * 3_000,
        "SELECT '" + "x" * 300_000 + "'",
    ],
    ids=["parentheses", "sums", "subqueries", "length"],
)
def test_a_monstrous_statement_is_an_error(database, statement):
    with pytest.raises(MrpoError):
        database.query(statement, timeout=5)
    assert database.query("SELECT 1").num_rows == 1


def test_a_long_but_honest_statement_is_read(database):
    """Thousands of ids, hundreds of conditions."""
    ids = ", ".join(f"'{n:032x}'" for n in range(4000))
    conditions = " OR ".join(f"logp = {n}" for n in range(-500, 0))
    for condition in (f"response_id NOT IN ({ids})", conditions):
        assert one_column(database, f"SELECT count(*) FROM logps WHERE {condition}") == [4]
    query = "SELECT " + " + ".join("1" for _ in range(400)) + " AS n"
    assert one_column(database, query) == [400]


def test_writing_a_long_result_is_on_the_clock(scene):
    """Rows that take minutes to write are ended like a query that takes minutes to find them."""
    started = time.monotonic()
    with open_sql(scene / "cache") as database:
        endless = database.stream("SELECT * FROM range(100000000000)", {}, 1.0)
        with pytest.raises(MrpoError, match="stopped after 1 seconds"):
            write(endless, "csv", scene / "work" / "out.csv")
    assert time.monotonic() - started < 20
