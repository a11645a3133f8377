"""The study: its statistics by hand and by enumeration, planted effects, the harness at toy size."""

from __future__ import annotations

import itertools
import json
import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "bench" / "study"


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    """Its modules find each other by their own names, and leave none of them behind."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(STUDY))
    yield
    for name in set(sys.modules) - before:
        if str(STUDY) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
