"""docs/performance.md shows the figures of docs/speed_on_cpu.json, as the benchmark prints them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_table_is_what_was_measured():
    spec = importlib.util.spec_from_file_location("speed", ROOT / "bench" / "speed.py")
    speed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(speed)
    results = json.loads((ROOT / "docs" / "speed_on_cpu.json").read_text())
    text = (ROOT / "docs" / "performance.md").read_text()
    assert speed.table(results) in text
    assert speed.described(results["machine"]) in text
