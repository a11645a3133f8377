"""Which route each family of causal LMs takes, and how far its numbers are from rows alone.

    python bench/families.py
    python docs/generate.py

The families are those of tests/families.py: tiny, with random weights. Writes docs/families.json,
of which docs/generate.py makes docs/families.md. It takes about ten minutes on one CPU thread.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from mrpo_tools.cache import library_versions
from mrpo_tools.maths.noise import Noise
from mrpo_tools.scorer.scorer import ResponseScorer, response_token_logps
from mrpo_tools.scorer.self_check import plain_token_logps, self_check

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "docs" / "families.json"
sys.path.insert(0, str(ROOT / "tests"))

import families  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="rows of tests/families.py; all by default")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    measured = {
        "command": "python bench/families.py && python docs/generate.py",
        "date": datetime.date.today().isoformat(),
        "versions": ", ".join(f"{name} {version}" for name, version in library_versions().items()),
        "rows": [row(name) for name in options.names or families.FAMILIES],
        "absent": families.ABSENT,
    }
    options.output.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


def row(name: str) -> dict[str, object]:
    """A family in float32 and in bfloat16."""
    started = time.monotonic()
    exact = {kind: found._asdict() for kind, found in families.measure(name).items()}
    measured = {"name": name, **exact, "bfloat16": in_bfloat16(name)}
    print(f"{time.monotonic() - started:.1f} s {measured}", file=sys.stderr, flush=True)
    return measured


def loaded_in_bfloat16(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights as a checkpoint is loaded: some layers stay in float32."""
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()


@torch.no_grad()
def in_bfloat16(name: str) -> dict[str, object]:
    """The route that is taken, and its tokens against those of each row alone; no route of a
    family that has no forward pass in bfloat16."""
    scorer = ResponseScorer(loaded_in_bfloat16(families.tiny_model(name)))
    try:
        plain_token_logps(scorer, families.OTHERS[:1], families.CPU)
    except RuntimeError as error:
        return {"route": None, "refused": {"the model": str(error)}}
    checked = self_check(scorer, families.SAMPLES["several"], families.CPU)
    truth = {
        key: logps
        for tree, plain in zip(
            families.OTHERS, plain_token_logps(scorer, families.OTHERS, families.CPU), strict=True
        )
        for key, logps in zip(tree.keys, plain, strict=True)
    }
    apart = [
        difference
        for batch in scorer.batches(families.OTHERS, 100)
        for key, logps in zip(
            [key for row in batch for key in row.keys],
            response_token_logps(scorer, batch, families.CPU),
            strict=True,
        )
        for difference in (logps - truth[key]).tolist()
    ]
    noise = Noise.of(apart)
    return {"route": scorer.route.name, "refused": checked.refused, "rms": noise.rms,
            "bias": noise.bias, "tokens": noise.tokens}  # fmt: skip


if __name__ == "__main__":
    main()
