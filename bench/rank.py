"""Whether the advice of `mrpo rank` is right, on simulated caches of known truth.

    python bench/rank.py
    python docs/generate.py

The scenarios are those of tests/known_truth.py, each drawn with several seeds. Writes
docs/rank_simulated.json, of which docs/generate.py makes a table in docs/methods.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

from mrpo_tools.evaluation.rank import rank

ROOT = Path(__file__).parent.parent
FRESH_GROUPS = 20_000
OUTPUT = ROOT / "docs" / "rank_simulated.json"
sys.path.insert(0, str(ROOT / "tests"))

from known_truth import SCENARIOS, Truth, cache_of, judge  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="scenarios; all by default")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--groups", type=int, default=300)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    measured = {
        "command": "python bench/rank.py && python docs/generate.py",
        "date": datetime.date.today().isoformat(),
        "groups": options.groups,
        "seeds": options.seeds,
        "rows": [row(name, options.groups, options.seeds) for name in options.names or SCENARIOS],
    }
    options.output.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


def row(name: str, groups: int, seeds: int) -> dict[str, object]:
    """One scenario: verdicts on what is said of the first reference, and of combinations."""
    truth = Truth(SCENARIOS[name], FRESH_GROUPS)
    first: Counter[str] = Counter()
    combination: Counter[str] = Counter()
    figures: Counter[str] = Counter()
    advised = 0
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as scratch:
            ranking = rank(cache_of(Path(scratch) / "cache", SCENARIOS[name], groups, seed))
        verdicts = judge(ranking, truth)
        first[verdicts[0]] += 1
        combination[verdicts[1]] += 1
        figures[ranking.leading_figure] += 1
        advised += bool(ranking.recommendation.others)
    measured = {
        "scenario": name,
        "accuracies": {key: round(of, 3) for key, of in truth.accuracies.items()},
        "best": truth.best,
        "first": dict(first),
        "combination": dict(combination),
        "advised": advised,
        "figures": dict(figures),
    }
    print(measured, file=sys.stderr, flush=True)
    return measured


if __name__ == "__main__":
    main()
