"""How often `mrpo compare` marks a method though nothing differs, and how often MRPO's rule does.

    python bench/false_alarms.py --output docs/false_alarms.json

Sweeps without any effect: every run's score is an effect of its seed, which all methods share, plus
noise of its own. `compare` itself marks them, on runs that exist in memory. MRPO's rule calls the
largest mean better where Cohen's d against the best baseline (of a baseline: against every other
method) is 0.5 or more. Then the same with a real effect of one method, for what `compare` finds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from mrpo_tools.config import Recipe, Reference
from mrpo_tools.maths.statistics import LARGE_ENOUGH, cohens_d
from mrpo_tools.runs.compare import Comparison, compare
from mrpo_tools.runs.outcomes import Outcome, OutcomesRecord
from mrpo_tools.runs.read import Result
from mrpo_tools.runs.record import EvaluationRecord, Metrics, RunRecord
from mrpo_tools.runs.run import Run

SWEEPS = 200
SEEDS = (3, 5, 10)
BASELINES = (1, 3)
METHODS = (1, 4)
SHARED = (0.0, 0.5)
"""Share of a score's variance that is its seed's and common to all methods."""
QUOTED = (3, 1, 1, 0.0)
"""The kind of sweep whose rate captions quote: ten times as many."""
EFFECTS = (1.0, 2.0)
"""Standard deviations of a run's score."""


def simulated(
    rng: random.Random, seeds: int, baselines: int, methods: int, shared: float,
    effect: float = 0.0,
) -> list[Result]:  # fmt: skip
    """The runs of a sweep with scores of variance 1; the last method's are larger by an effect."""
    common = [rng.gauss(0, math.sqrt(shared)) for _ in range(seeds)]
    results = []
    for place in range(baselines + methods):
        above = effect if place == baselines + methods - 1 else 0.0
        for seed in range(seeds):
            score = common[seed] + rng.gauss(0, math.sqrt(1 - shared)) + above
            results.append(_run(place, seed, score, is_baseline=place < baselines))
    return results


def _run(place: int, seed: int, score: float, *, is_baseline: bool) -> Result:
    """A run whose answers have a mean score."""
    outcome = Outcome(scorer="rules:score", decoding="sampled", mean=score, samples=4)
    return Result(
        _recipe_run(place, seed, is_baseline=is_baseline),
        Metrics(),
        [],
        EvaluationRecord(groups=200, groups_hash="0"),
        OutcomesRecord(outcomes=[outcome]),
    )


@cache
def _recipe_run(place: int, seed: int, *, is_baseline: bool) -> Run:
    """What was trained; `place` tells methods apart."""
    names = [f"reference-{place}"] if is_baseline else ["reference-0", "other"]
    about = {} if is_baseline else {"epsilon_max": 0.1 * place}
    recipe = Recipe(loss="dpo" if is_baseline else "mrpo", refs=names, seed=seed, **about)
    record = RunRecord(
        policy=Reference(model="model"), references=names, combination={"epsilon_max": 0.1 * place}
    )
    return Run(Path(f"run-{place}-{seed}"), recipe, record)


def mrpos_rule(comparison: Comparison) -> str | None:
    """The label that MRPO's rule calls better; None where the largest mean is no clear one."""
    key = comparison.marked.key
    rows = sorted(comparison.rows, key=lambda row: -(row.cells[key].mean or 0.0))
    first, best_baseline = rows[0], next(row for row in rows if row.baseline)
    rivals = rows[1:] if first is best_baseline else [best_baseline]
    effects = [cohens_d(first.cells[key].values, row.cells[key].values) for row in rivals]
    return first.label if all(d is not None and d >= LARGE_ENOUGH for d in effects) else None


def rate(alarms: int, sweeps: int) -> dict[str, float]:
    """A share with its 95 % interval (Wilson 1927)."""
    share, z2 = alarms / sweeps, 1.96**2
    centre = (share + z2 / (2 * sweeps)) / (1 + z2 / sweeps)
    reach = 1.96 * math.sqrt(share * (1 - share) / sweeps + z2 / (4 * sweeps**2))
    reach /= 1 + z2 / sweeps
    return {"rate": share, "low": max(centre - reach, 0.0), "high": min(centre + reach, 1.0)}


def measure(
    sweeps: int, seeds: int, baselines: int, methods: int, shared: float, effect: float = 0.0
) -> dict[str, Any]:
    """The share of sweeps in which something is marked, and the planted method is."""
    rng = random.Random(f"{seeds} {baselines} {methods} {shared} {effect}")
    marked = found = called = method_called = 0
    for _ in range(sweeps):
        comparison = compare(simulated(rng, seeds, baselines, methods, shared, effect))
        marks = [row.cells[comparison.marked.key].mark for row in comparison.rows]
        marked += any(marks)
        found += marks[-1] == "better"
        better = mrpos_rule(comparison)
        called += better is not None
        method_called += better is not None and better.startswith("mrpo")
    about = {
        "sweeps": sweeps,
        "seeds": seeds,
        "baselines": baselines,
        "methods": methods,
        "shared": shared,
    }
    if effect:
        return {**about, "effect": effect, "found": rate(found, sweeps)}
    return {
        **about,
        "compare": rate(marked, sweeps),
        "mrpos_rule": rate(called, sweeps),
        "mrpos_rule_method": rate(method_called, sweeps),
    }


def measurements(sweeps: int) -> Iterator[dict[str, Any]]:
    """Every kind of sweep without an effect, then those with one."""
    for kind in itertools.product(SEEDS, BASELINES, METHODS, SHARED):
        yield measure(10 * sweeps if kind == QUOTED else sweeps, *kind)
    for effect, seeds, baselines in itertools.product(EFFECTS, SEEDS[1:], BASELINES):
        yield measure(sweeps, seeds, baselines, 4, 0.5, effect)


def main() -> None:
    """Measure, print a line for each kind of sweep, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=SWEEPS, help="of each kind, but for one")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = []
    for row in measurements(arguments.sweeps):
        rows.append(row)
        print(json.dumps(row), flush=True)
    if arguments.output:
        command = f"python bench/false_alarms.py --sweeps {arguments.sweeps}"
        text = json.dumps({"command": command, "rows": rows}, indent=1)
        arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
