"""What two rounds on the demo's models gave, for docs/rounds.md.

mrpo demo --rounds 2
python bench/rounds.py demo        # writes docs/rounds_on_demo.json
python docs/generate.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mrpo_tools.rounds.record import RoundRecord
from mrpo_tools.rounds.table import outcome_rows

KEPT = Path(__file__).parent.parent / "docs" / "rounds_on_demo.json"
EXPERIMENTS = {"first": "the first policy alone", "history": "the first and earlier policies"}


def measured(demo: Path) -> dict[str, Any]:
    """The tables of both experiments, as `mrpo round` prints them."""
    tables = {}
    for name, references in EXPERIMENTS.items():
        values = json.loads((demo / "rounds" / name / "rounds.json").read_text("utf-8"))
        header, rows = outcome_rows([RoundRecord.model_validate(each) for each in values["rounds"]])
        tables[references] = {"header": header, "rows": rows}
    return {"command": "mrpo demo --rounds 2", "tables": tables}


if __name__ == "__main__":
    KEPT.write_text(json.dumps(measured(Path(sys.argv[1])), indent=1, ensure_ascii=False) + "\n")
    print(f"wrote {KEPT}")
