"""Phase 1 by several processes that die: is the cache that of a process that was left alone?

    python bench/many_machines.py project PROJECT    # model, data, mrpo.yaml, and the cache `whole`
    python bench/many_machines.py ray PROJECT        # a Ray of two nodes, one killed in the middle
    bench/slurm.sh PROJECT OUTPUT array              # a Slurm, a task put back while it computes
    python bench/many_machines.py compare PROJECT/whole CACHE --name NAME --command COMMAND

`ray` wants `pip install ray`, and mrpo on the path. Both nodes are on this machine, a processor
each; the second, with its raylet, its workers and their mrpo, gets SIGKILL while it computes. What
is compared goes to docs/many_machines.json: responses that have no row or one too many, rows that
two parts have, and the largest difference of a log-prob in nats a token: the package promises 1e-5
in float32, as other processes have other batches.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "docs" / "many_machines.json"
PROJECT = """\
dataset: {data}
cache: cache
references:
  one: {{model: {model}, dtype: float32}}
"""
PARTS = 6
COMPUTING = 8.0
"""Seconds of processor time after which an mrpo is in the midst of its rows: loading takes 4."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True)
    for name, verb in {"project": make_project, "ray": on_ray}.items():
        verb_parser = verbs.add_parser(name)
        verb_parser.add_argument("project", type=Path)
        verb_parser.set_defaults(verb=verb)
    comparing = verbs.add_parser("compare")
    comparing.add_argument("whole", type=Path)
    comparing.add_argument("cache", type=Path)
    comparing.add_argument("--name", required=True)
    comparing.add_argument("--command", required=True)
    comparing.add_argument("--said", default="{}", help="JSON: what is to stand beside it")
    comparing.set_defaults(verb=compare_caches)
    options = parser.parse_args()
    options.verb(options)


def make_project(options: argparse.Namespace) -> None:
    """Everything that the trials read, and the cache of a lone process."""
    from models import make_model

    from mrpo_tools.sources import load_groups

    folder, data = options.project.resolve(), ROOT / "data" / "demo.jsonl"
    groups = load_groups(data).groups
    texts = [turn.content for group in groups for turn in group.prompt]
    texts += [response.content for group in groups for response in group.responses]
    make_model(folder / "model", texts)
    (folder / "mrpo.yaml").write_text(PROJECT.format(data=data, model=folder / "model"))
    started = time.monotonic()
    subprocess.run(["mrpo", "precompute", "--cache", "whole"], cwd=folder, check=True)
    print(f"alone: {time.monotonic() - started:.0f} s")


def on_ray(options: argparse.Namespace) -> None:
    """A cluster of two nodes, of which the second is killed while it computes."""
    import ray
    from ray.cluster_utils import Cluster

    folder = options.project.resolve()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    words = ["--parts", PARTS, "--gpus", 0, "--cpus", 1, "--ref", "one", "--cache", "by_ray"]
    command = [sys.executable, ROOT / "recipes" / "ray" / "precompute.py", *words]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    started = time.monotonic()
    job = subprocess.Popen([*map(str, command)], cwd=folder, env=environment,
                           stdout=subprocess.PIPE, text=True)  # fmt: skip
    victims = computing_on(second, job, folder / "by_ray")
    before = rows_of(folder / "by_ray")
    for process in victims:
        process.send_signal(signal.SIGKILL)
    at = time.monotonic() - started
    said, _ = job.communicate()
    print(said)
    took = time.monotonic() - started
    cluster.shutdown()
    record(
        "ray",
        folder / "whole",
        folder / "by_ray",
        command="python bench/many_machines.py ray PROJECT",
        said={
            "ray": ray.__version__,
            "tasks": PARTS,
            "exit code": job.returncode,
            "parts done by the node that was killed": said.count(f"is done, by {second.node_id}"),
            "killed processes": len(victims),
            "killed after seconds": round(at, 1),
            "rows there when it was killed": len(before),
            "seconds": round(took, 1),
        },
    )


def computing_on(node: Any, job: subprocess.Popen[str], cache: Path) -> list[psutil.Process]:
    """All processes of a node, once it computes a part that was begun after another was done."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    while job.poll() is None:
        time.sleep(0.1)
        done = min((path.stat().st_mtime for path in cache.rglob("part-*.parquet")), default=None)
        tree = [raylet, *raylet.children(recursive=True)]
        if done is not None and any(is_computing(process, done) for process in tree):
            return tree
    raise SystemExit("the work ended before the node could be killed")


def is_computing(process: psutil.Process, since: float) -> bool:
    """Whether it is an mrpo that began after a moment and is in the midst of its rows."""
    try:
        begun = "--shard" in process.cmdline() and process.create_time() > since
        return begun and sum(process.cpu_times()[:2]) >= COMPUTING
    except psutil.Error:
        return False


def compare_caches(options: argparse.Namespace) -> None:
    """The same for caches that others have filled."""
    record(options.name, options.whole, options.cache, options.command, json.loads(options.said))


def record(name: str, whole: Path, cache: Path, command: str, said: dict[str, Any]) -> None:
    """Compare, print, and write into the page's file."""
    result = {"command": command, **said, **compared(whole, cache)}
    print(json.dumps(result, indent=1))
    results = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {}
    results[name] = result
    OUTPUT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def table(results: dict[str, Any]) -> str:
    """The page's table."""
    names = {"ray": "Ray", "slurm": "Slurm"}
    head = (
        "| | tasks | missing | counted twice | computed twice | nats a token apart | bit for bit |"
    )
    lines = [
        f"| {names[name]} | {row['tasks']} | {row['missing']} | {row['counted twice']} | "
        f"{row['computed twice']} | {row['largest difference, nats a token']:.0e} | "
        f"{row['bit for bit the same']:,} of {row['responses']:,} |"
        for name, row in results.items()
    ]
    return "\n".join([head, "|---|---|---|---|---|---|---|", *lines])


def compared(whole: Path, cache: Path) -> dict[str, float]:
    """What differs of two caches; rows of parts as they are, and as the cache counts them."""
    from mrpo_tools.cache import Cache

    expected = {row["response_id"]: row for row in Cache(whole).find("one").table().to_pylist()}
    store = Cache(cache).find("one")
    counted = Counter(store.table()["response_id"].to_pylist())
    apart, equal = 0.0, 0
    for row in store.table().to_pylist():
        other = expected.get(row["response_id"], row)
        apart = max(apart, abs(row["logp"] - other["logp"]) / row["num_tokens"])
        equal += row["logp"] == other["logp"]
    return {
        "responses": len(expected),
        "missing": len(expected.keys() - counted.keys()),
        "foreign": len(counted.keys() - expected.keys()),
        "counted twice": sum(counted.values()) - len(counted),
        "computed twice": sum(rows_of(cache).values()) - len(counted),
        "largest difference, nats a token": apart,
        "bit for bit the same": equal,
        "parts": len(store.part_paths()),
    }


def rows_of(cache: Path) -> Counter[str]:
    """How many parts have a row of each response."""
    from mrpo_tools.cache import Cache

    stores = Cache(cache).references() if cache.is_dir() else []
    tables = [part.table for store in stores for part in store.parts()]
    return Counter(key for table in tables for key in table["response_id"].to_pylist())


if __name__ == "__main__":
    main()
