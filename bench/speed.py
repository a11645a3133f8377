"""Scoring and training speed against TRL and against plain rows, side by side on one machine.

    python bench/speed.py all --data DIR --pairs 2 --output docs/speed_on_cpu.json
    python bench/speed.py table docs/speed_on_cpu.json

DIR holds `chat_pairs_sharegpt.json` and `vicuna_scored4.jsonl`. Every measurement is a process of
its own that prints one line of JSON (`python bench/speed.py run NAME …` runs one). The two sides of
a comparison take turns, A B A B; a comparison's figure is the median of its pairs' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

COMPARISONS = [
    # name, ours, theirs, must, goal
    ("scoring against TRL's defaults", "score", "trl-score", 2.0, 2.4),
    ("scoring against TRL sorted, best batch of 4, 8, 16", "score", "trl-score-sorted", 1.8, 2.1),
    ("trees against plain padded rows", "score", "score-plain", 1.2, 1.35),
    ("four responses a prompt against TRL's three pairs", "score-four", "trl-score-four", 2.2, 2.8),
    ("prompt:response 4:1 against unpadded plain rows", "planned-512", "unshared-512", 1.45, 1.6),
    ("prompt:response 1:1 against unpadded plain rows", "planned-128", "unshared-128", 1.2, 1.3),
    ("the planner on prompts of 8 tokens against plain rows", "planned-8", "unshared-8", 0.98, 1.0),
    ("training step against TRL's", "train", "trl-train", 2.2, 3.2),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["all", "run", "table"])
    parser.add_argument("name", nargs="?", help="what to run, or the file to show")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "mrpo-speed")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="only the comparisons with these words")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.action == "table":
        print(table(json.loads(Path(options.name).read_text())))
    elif options.action == "run":
        import speed_runs

        print(json.dumps(speed_runs.run(options.name, options.data, options.work)))
    else:
        everything(options)


def everything(options: argparse.Namespace) -> None:
    results = {"machine": machine(options.threads), "comparisons": []}
    for name, ours, theirs, must, goal in COMPARISONS:
        if options.only and not any(word in name for word in options.only):
            continue
        if theirs == "trl-score-sorted":
            theirs = fastest([f"{theirs}-{size}" for size in (4, 8, 16)], options)
        pairs = [(measured(ours, options), measured(theirs, options)) for _ in range(options.pairs)]
        ratios = [b["seconds"] / a["seconds"] for a, b in pairs]
        results["comparisons"].append(
            {"name": name, "must": must, "goal": goal, "ratio": statistics.median(ratios),
             "ratios": ratios, "ours": ours, "theirs": theirs, "pairs": pairs}
        )  # fmt: skip
        save(results, options)
    if not options.only or "alone" in options.only:
        results["score_alone"] = [measured("score", options) for _ in range(options.pairs)]
        save(results, options)
    if not options.only or "references" in options.only:
        results["references"] = [
            (measured("train-1", options), measured("train-3", options))
            for _ in range(options.pairs)
        ]
        save(results, options)


def fastest(names: list[str], options: argparse.Namespace) -> str:
    """The one of several that takes least time."""
    return min(names, key=lambda name: measured(name, options)["seconds"])


def measured(name: str, options: argparse.Namespace) -> dict:
    """One run in a process of its own."""
    command = [sys.executable, __file__, "run", name, "--data", str(options.data),
               "--work", str(options.work)]  # fmt: skip
    threads = str(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "HF_DATASETS_CACHE": scratch,
                       "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1",
                       "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-4000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{name}: {found['seconds']:.2f} s", file=sys.stderr, flush=True)
    return found


def machine(threads: int) -> dict:
    import importlib.metadata as metadata
    import platform
    from datetime import date

    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.processor(),
    )  # fmt: skip
    names = ("torch", "transformers", "trl", "peft", "tokenizers")
    return {"date": date.today().isoformat(), "cpu": model, "threads": threads,
            "versions": {name: metadata.version(name) for name in names}}  # fmt: skip


def described(found: dict) -> str:
    """One sentence about the machine of a measurement."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"{found['date']}, {found['cpu']}, {found['threads']} threads; {versions}."


def save(results: dict, options: argparse.Namespace) -> None:
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results), file=sys.stderr)


def table(results: dict) -> str:
    """The measurements as Markdown."""
    heads = ("work", "ratio", "pairs", "ours s", "theirs s", "must", "goal")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for one in results["comparisons"]:
        ours, theirs = (
            statistics.median(pair[side]["seconds"] for pair in one["pairs"]) for side in (0, 1)
        )
        ratios = ", ".join(f"{ratio:.2f}" for ratio in one["ratios"])
        lines.append(
            f"| {one['name']} | **{one['ratio']:.2f}** | {ratios} | {ours:.1f} | {theirs:.1f} "
            f"| {one['must']} | {one['goal']} |"
        )
    if results.get("references"):
        ratios = [b["seconds"] / a["seconds"] for a, b in results["references"]]
        shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        lines.append(
            f"| training step, three references against one | **{statistics.median(ratios):.3f}** "
            f"| {shown} | | | ≤ 1.03 | 1.01 |"
        )
    runs = [
        run for one in results["comparisons"] if one["ours"] == "score" for run, _ in one["pairs"]
    ]
    if runs:
        shares = [run["useful_share"] for run in runs]
        other = [run["other_share"] for run in results.get("score_alone", [])]
        theirs = [pair[1] for one in results["comparisons"] for pair in one["pairs"]
                  if one["theirs"] == "trl-score"]  # fmt: skip
        if theirs:
            peaks = [statistics.median(run["peak_memory_bytes"] for run in side) / 2**20
                     for side in (runs, theirs)]  # fmt: skip
            lines.append(
                f"| peak memory of scoring, ours {peaks[0]:,.0f} MiB, TRL's {peaks[1]:,.0f} MiB "
                f"| **{peaks[0] / peaks[1]:.2f}** | | | | ≤ 1 | flat |"
            )
        lines.append(
            "| useful work as a share of the matrix-product peak "
            f"| **{statistics.median(shares):.0%}** "
            f"| {', '.join(f'{share:.0%}' for share in shares)} | | | ≥ 60 % | 75 % |"
        )
    if runs and other:
        lines.append(
            f"| everything but the forward passes | **{statistics.median(other):.1%}** "
            f"| {', '.join(f'{share:.1%}' for share in other)} | | | ≤ 8 % | 4 % |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
