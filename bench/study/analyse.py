"""Collect the study's results and write docs/study.md and its pictures.

python bench/study/analyse.py WORK    what run.py made -> docs/study.json, page, pictures
python bench/study/analyse.py         docs/study.json -> page, pictures
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

from claims import CLAIMS, GATE, compare, falsified, gate, primary, share_of_gain
from contrasts import Contrast, as_family
from pictures import draw, ordered_arms
from results import COOLED, FILE, KLS, Study, collect, read_study

DOCS = FILE.parent
ALPHA = 0.05


def page(study: Study, second: Study, prose: str) -> str:
    """The prose around the tables."""
    tables: dict[str, Callable[[Study], str]] = {
        "asked": _asked,
        "about": _about,
        "gate": _gate,
        "claims": _claims,
        "controls": _controls,
        "arms": _arms,
        "divergence": _divergence,
        "shares": _shares,
        "reached": _reached,
    }
    for name, table in tables.items():
        prose = prose.replace("{{" + name + "}}", table(study))
        prose = prose.replace("{{split " + name + "}}", table(second))
    return prose


def _table(*rows: tuple[str, ...]) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def shown(made: Contrast) -> str:
    """A mean difference with its 95 % interval."""
    if made.mean is None:
        return "–"
    if made.intervals is None:
        return f"{made.mean:+.2f}"
    low, high = made.intervals[0]
    return f"{made.mean:+.2f} ({low:+.2f} to {high:+.2f})"


def _probability(p: float | None) -> str:
    return "–" if p is None else f"{p:.3f}"


def _about(study: Study) -> str:
    seconds = [run["seconds"] for run in study.runs if "seconds" in run]
    training = [run["train_seconds"] for run in study.runs if "train_seconds" in run]
    return (
        f"{len(seconds):,} runs, {fmean(seconds):.1f} s each on a shared core "
        f"({fmean(training):.1f} of them in optimizer steps). Made by "
        f"`{study.about['command']}` on {study.about['date']} with {study.about['versions']}."
    )


def _gate(study: Study) -> str:
    rows = [
        (f"{kl:g}", shown(made), str(made.replicates),
         "passed" if made.mean is not None and made.mean >= GATE else "not passed")
        for kl, made in gate(study).items()
    ]  # fmt: skip
    return _table(("KL", "oracle − anti-oracle", "replicates", f"gate ({GATE})"), *rows)


def _claims(study: Study) -> str:
    made = primary(study)
    rows = []
    for name, claim in CLAIMS.items():
        reasons = falsified(study, name, made)
        for kl in claim.kls:
            mine = made[name, kl]
            cells = (claim.words, f"`{claim.pair[0]}` − `{claim.pair[1]}`", f"{kl:g}", shown(mine),
                     str(mine.replicates), _probability(mine.p), _probability(mine.adjusted),
                     _verdict(mine, claim.sign, [words for at, words in reasons
                                                 if at in (None, kl)]))  # fmt: skip
            rows.append(cells)
    heads = ("claim", "contrast", "KL", "mean (95 %)", "replicates", "p", "p (Holm)")
    return _table((*heads, "by the rules"), *rows)


def _verdict(made: Contrast, sign: int, reasons: list[str]) -> str:
    if reasons:
        return "falsified: " + "; ".join(reasons)
    sure = made.adjusted is not None and made.adjusted < ALPHA and (made.mean or 0) * sign > 0
    return "**stands**" if sure else "not falsified, not shown"


def _controls(study: Study) -> str:
    others = ("placebo", "wrong_ids", "dpo_stretched", COOLED)
    pairs = [*(("mrpo", other) for other in others), ("oracle", "mrpo")]
    rows = [
        (f"`{pair[0]}` − `{pair[1]}`", *(shown(compare(study, pair, kl)) for kl in KLS))
        for pair in pairs
        if all(map(study.finished, pair))
    ]
    return _table(("contrast", "at 1 nat", "at 3 nats"), *rows)


def _arms(study: Study) -> str:
    rows = []
    for arm in (*ordered_arms(study), COOLED):
        finished = study.finished(arm)
        if not finished:
            continue
        clipped = [run["clipped"] for run in study.of_arm(arm) if run.get("clipped") is not None]
        cells = [f"`{arm}`", str(len(finished))]
        for kl in KLS:
            scores = study.scores(arm, kl)
            cells.append(f"{fmean(scores.values()):.2f}" if scores else "–")
            cells.append("" if arm == "dpo_base" else shown(compare(study, (arm, "dpo_base"), kl)))
        rows.append((*cells, f"{fmean(clipped):.0%}" if clipped and any(clipped) else "–"))
    return _table(
        ("arm", "replicates", "at 1 nat", "minus `dpo_base`", "at 3 nats", "minus `dpo_base`",
         "clipped"), *rows,
    )  # fmt: skip


def _divergence(study: Study) -> str:
    counts = {arm: study.diverged([arm], study.seeds) for arm in ordered_arms(study)}
    fallen = [f"`{arm}` in {fallen} of {runs}" for arm, (fallen, runs) in counts.items() if fallen]
    total = sum(runs for _, runs in counts.values())
    rest = "; ".join(fallen) if fallen else "no run"
    return f"Of {total:,} runs these diverged: {rest}."


def _asked(study: Study) -> str:
    """The two questions of the second design."""
    pairs = [("mrpo", "wrong_ids"), ("mrpo", "dpo_base")]
    made = as_family({(pair, kl): compare(study, pair, kl) for pair in pairs for kl in KLS})
    rows = [
        (f"`{pair[0]}` − `{pair[1]}`", f"{kl:g}", shown(each), str(each.replicates),
         _probability(each.p), _probability(each.adjusted))
        for (pair, kl), each in made.items()
    ]  # fmt: skip
    return _table(("contrast", "KL", "mean (95 %)", "replicates", "p", "p (Holm)"), *rows)


def _shares(study: Study) -> str:
    rows = [
        (f"`{control}`", *(_share(share_of_gain(study, control, kl)) for kl in KLS))
        for control in ("placebo", "wrong_ids", "dpo_stretched", COOLED, "oracle")
        if study.finished(control)
    ]
    return _table(("share of MRPO's gain over `dpo_base`", "at 1 nat", "at 3 nats"), *rows)


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def _reached(study: Study) -> str:
    short = [
        f"`{arm}` {len(study.finished(arm)) - len(study.scores(arm, kl))} at {kl:g}"
        for arm in ordered_arms(study)
        for kl in KLS
        if len(study.scores(arm, kl)) < len(study.finished(arm))
    ]
    return "; ".join(short) if short else "none"


def main(*work: str) -> None:
    """Collect, if there is something to collect; then write."""
    if work:
        collect(Path(work[0]))
    first, second = read_study(), read_study("split")
    prose = (DOCS / "study.in.md").read_text(encoding="utf-8")
    (DOCS / "study.md").write_text(page(first, second, prose), encoding="utf-8")
    draw(first, second, DOCS / "study")


if __name__ == "__main__":
    main(*sys.argv[1:])
