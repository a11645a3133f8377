"""bench/gpu.py, rehearsed on a CPU: every section measures something, and what it says is true."""

from __future__ import annotations

import argparse
import importlib.metadata as metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "bench" / "gpu.py"
SECTIONS = ("machine", "kernels", "noise", "memory", "score", "train", "profile")
MODEL = "mistral"  # the one with a window
NEEDED = {"torch", "transformers", "peft", "pydantic", "pyyaml"}
WITHOUT = """
import importlib.machinery, runpy, sys

class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        missing = name.partition(".")[0] in refused
        return None if missing else super().find_spec(name, path, target)

refused, sys.argv = set(sys.argv[1].split(",")), sys.argv[2:]
finders = importlib.machinery.PathFinder
sys.meta_path[sys.meta_path.index(finders)] = Without
for name in refused:
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} is here after all")
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script where some libraries are not installed, as far as it can see."""


def names_of(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", line).group().lower() for line in requirements}


def not_needed() -> set[str]:
    """The project's libraries but for the five, and what those bring with them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    brought = {
        name for library in NEEDED
        for name in names_of([line for line in metadata.requires(library) or []
                              if "extra ==" not in line])
    }  # fmt: skip
    return names_of(project["dependencies"]) - NEEDED - brought


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu"] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """All sections in one process, in which only the libraries that it needs can be imported."""
    output = tmp_path_factory.mktemp("bench") / "gpu.jsonl"
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT, ",".join(sorted(not_needed())), str(SCRIPT), *SECTIONS,
         "--tiny", "--models", MODEL, "--output", str(output)],
        capture_output=True, text=True, cwd=output.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    text = output.read_text(encoding="utf-8")
    assert text == run.stdout
    return [json.loads(line) for line in text.splitlines()]


def of(lines: list[dict], section: str, figure: str, **labels) -> list[dict]:
    chosen = [
        line for line in lines
        if line["section"] == section and figure in line
        and all(line[name] == value for name, value in labels.items())
    ]  # fmt: skip
    assert chosen, (section, figure, labels)
    return chosen


def options(**words) -> argparse.Namespace:
    base = {"tiny": True, "models": MODEL, "limit": 300, "output": None}
    return argparse.Namespace(**{**base, **words})


def said(capsys: pytest.CaptureFixture) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_what_it_does_without():
    assert not_needed() >= {"pyarrow", "duckdb", "datasets", "bitsandbytes", "platformdirs"}


def test_every_section_ends_without_an_error(lines):
    assert not [line for line in lines if "error" in line]
    assert tuple(line["of"] for line in of(lines, "done", "of")) == SECTIONS


def test_attention_over_trees_is_that_of_the_mask(lines):
    """bfloat16 has 8 bits: a sum of rounded numbers is wrong by some thousandths."""
    ways = {line["attention"] for line in of(lines, "kernels", "relative_error")}
    assert ways >= {"tree", "mask"}
    assert len(ways) > 2
    for line in of(lines, "kernels", "relative_error"):
        assert set(line["relative_error"]) == {"output", "query", "key", "value"}
        assert all(1e-4 < error < 0.01 for error in line["relative_error"].values()), line
    sizes = {(line["size"], line["window"] is None) for line in of(lines, "kernels", "window")}
    assert sizes >= {(128, True), (128, False), (96, True), (256, True), (256, False)}


def test_a_wrong_window_would_show(gpu):
    trees = [gpu.Row([5] * 30, [[6] * 20, [7] * 10], range(2))]
    torch.manual_seed(0)
    inputs = [torch.randn(1, 2, 60, 16) for _ in range(4)]
    exact = gpu.with_gradients(partial(gpu.by_mask, gpu.line_mask(trees, 8)), inputs)
    cpu = torch.device("cpu")
    right = gpu.compared(gpu.by_trees("tree", trees, 8), inputs, exact, cpu)
    wrong = gpu.compared(gpu.by_trees("tree", trees, 9), inputs, exact, cpu)
    assert all(error < 1e-5 for error in right["relative_error"].values())
    assert all(error > 0.05 for error in wrong["relative_error"].values())


def test_noise_is_noise(lines):
    """Rounding to 8 bits of logits of a standard deviation of 4 is some hundredths of a nat."""
    for line in of(lines, "noise", "sums_rms", route="alone"):
        assert line["rms"] == line["max"] == 0
    noisy = [
        *of(lines, "noise", "sums_rms", route="tree"),
        *of(lines, "noise", "sums_rms", route="rows", batched=True),
        *of(lines, "noise", "sums_rms", route="float32"),
    ]
    for line in noisy:
        assert 0 < line["rms"] < 0.05, line
        assert line["rms"] <= line["max"], line
        assert abs(line["bias"]) < line["rms"] / 2, line
    assert {line["responses"] for line in noisy} == {"short", "long"}
    for line in of(lines, "noise", "taken"):
        assert line["taken"] == "tree"
        assert line["refused"] == {}
        assert 0 < line["rms"] < 0.05


def test_differences_are_described(gpu):
    """A response of 4 tokens, 0.1 too high each, and one of 1 token, 0.3 too low: the sums over √L
    are 0.4/2 and −0.3."""
    logps = {0: torch.tensor([0.1, 0.1, 0.1, 0.1]), 1: torch.tensor([-0.3])}
    facts = gpu.apart(logps, {0: torch.zeros(4), 1: torch.zeros(1)})
    assert facts["rms"] == pytest.approx(((4 * 0.01 + 0.09) / 5) ** 0.5)
    assert facts["bias"] == pytest.approx(0.1 / 5)
    assert facts["max"] == pytest.approx(0.3)
    assert facts["sums_rms"] == pytest.approx(((0.04 + 0.09) / 2) ** 0.5)
    assert facts["tokens"] == 5


def test_predicted_memory_is_what_is_taken(lines):
    sizes = []
    for line in of(lines, "memory", "peak_mib"):
        dry = of(lines, "memory", "predicted_mib", tokens=line["tokens"])
        assert [one["predicted_mib"] for one in dry] == [pytest.approx(line["peak_mib"], rel=0.15)]
        sizes.append(line["peak_mib"])
    assert sizes == sorted(set(sizes))
    assert len(sizes) == 3


def test_every_route_gives_the_same_log_probs_as_padded_rows(lines):
    """Logits are N(0, 4²), targets chance: a token's log-prob is −logsumexp on average."""
    scored = of(lines, "score", "nats_per_token")
    assert {line["route"] for line in scored} >= {"padded", "tree", "mask", "rows", "alone"}
    torch.manual_seed(0)
    expected = -(4 * torch.randn(4000, 512)).logsumexp(-1).mean().item()
    for answers in (2, 4):
        nats = [line["nats_per_token"] for line in scored if line["answers"] == answers]
        assert nats == [pytest.approx(nats[0], abs=1e-5)] * len(nats)
        assert nats[0] == pytest.approx(expected, rel=0.05)


def test_useful_work_is_two_operations_for_each_parameter_and_token(lines, gpu):
    """Two layers of 64: projections of 4 heads of 16 and 2 of keys, three matrices of the MLP, two
    norms, and the last one; then the head of 512 for response tokens."""
    peak = of(lines, "machine", "peak_tflops")[0]["peak_tflops"]
    assert peak > 0
    layer = 64 * (4 + 2 + 2 + 4) * 16 + 3 * 64 * 128 + 2 * 64
    decoder = 2 * layer + 64
    bench = gpu.Bench(True, [MODEL])
    for line in of(lines, "score", "useful_tflops"):
        count = bench.few(gpu.PROMPTS[line["answers"]])
        trees = bench.trees(MODEL, (line["answers"],) * count)
        answers = sum(len(ids) for tree in trees for ids in tree.responses)
        prompts = sum(len(tree.prompt) for tree in trees)
        useful = 2 * (decoder * (prompts + answers) + 64 * 512 * answers)
        assert line["useful_tflops"] * line["seconds"] * 1e12 == pytest.approx(useful)
        assert line["unique_tokens_per_s"] * line["seconds"] == pytest.approx(prompts + answers)
        assert line["response_tokens_per_s"] * line["seconds"] == pytest.approx(answers)
        assert 0 < line["share_of_peak"] < 1


def test_steps_on_trees_and_on_padded_rows_are_the_same_step(lines):
    for recomputed in (False, True):
        trees = of(lines, "train", "seconds", step="trees", recomputed=recomputed)[0]
        padded = of(lines, "train", "seconds", step="padded", recomputed=recomputed)[0]
        assert trees["first_loss"] == pytest.approx(padded["first_loss"], rel=1e-5)
        assert trees["last_loss"] == pytest.approx(padded["last_loss"], rel=1e-4)
        assert trees["last_loss"] < trees["first_loss"]


def test_what_a_step_keeps_is_what_is_predicted(lines):
    kept = []
    for recomputed in (False, True):
        step = of(lines, "train", "peak_mib", step="trees", recomputed=recomputed)[0]
        dry = of(lines, "train", "predicted_mib", step="trees", recomputed=recomputed)[0]
        kept.append(step["kept_mib_per_token"])
        assert kept[-1] == pytest.approx(dry["predicted_kept_mib_per_token"], rel=0.15)
        assert step["peak_mib"] == pytest.approx(dry["predicted_mib"], rel=0.15)
    assert kept[1] < 0.7 * kept[0]


def test_the_profile_names_the_dearest_first(lines):
    for line in of(lines, "profile", "top"):
        spent = [milliseconds for _, milliseconds, _ in line["top"]]
        assert spent == sorted(spent, reverse=True)
        assert 0 < sum(spent) <= 1e3 * line["seconds"] * line["busy_share"] * 1.0001
        assert 0 < line["busy_share"] < 1.1
    assert {line["work"] for line in of(lines, "profile", "top")} == {"score", "train"}


def test_the_tables_show_every_section(lines, gpu):
    text = gpu.table(lines)
    assert [f"**{each.title}**" in text for each in gpu.TABLES] == [True] * len(gpu.TABLES)
    assert "nan" not in text
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        assert len({line.count(" | ") for line in block.splitlines()}) == 1, block
    broken = [*lines, {"section": "score", "model": "qwen", "error": "RuntimeError: no"}]
    assert gpu.table(broken) == f"{text}\n\n- score: RuntimeError: no"


def test_goals_are_judged_by_the_fastest_route_and_the_best_padded_batch(gpu):
    """20 s against padded rows' 50 s at their best batch: 2.5 times as fast."""
    measured = [
        ("padded", {"rows": 4}, 60), ("padded", {"rows": 8}, 50), ("tree", {"budget": 8192}, 30),
        ("tree", {"budget": 4096}, 20), ("mask", {"budget": 8192}, 25),
    ]  # fmt: skip
    made_up = [
        {"section": "score", "model": "llama", "answers": 4, "route": route, **batch,
         "seconds": seconds, "unique_tokens_per_s": 720_000 / seconds, "useful_tflops": 1.0,
         "share_of_peak": 12 / seconds, "peak_mib": 1.0}
        for route, batch, seconds in measured
    ]  # fmt: skip
    text = gpu.table(made_up)
    assert "| llama | 36,000 | 60% | 2.50 |" in text
    assert "| llama | 4 | tree | 4,096 tokens |" in text
    assert "| llama | 4 | padded | 8 rows |" in text


def test_what_fails_is_a_line_and_the_rest_goes_on(gpu, capsys):
    gpu.run_here("noise", options(models="nobody"))
    failed, done = said(capsys)
    assert failed == {"section": "noise", "error": "KeyError: 'nobody'"}
    assert done["of"] == "noise"
    assert gpu.tried(lambda: 1 / 0, size=1) == {
        "size": 1, "error": "ZeroDivisionError: division by zero",
    }  # fmt: skip


def test_a_section_stops_at_its_limit(gpu, capsys):
    gpu.run_here("kernels", options(limit=0))
    measured, stopped, _ = said(capsys)
    assert "relative_error" in measured
    assert "stopped after 0 s" in stopped["error"]


def test_a_process_that_hangs_is_a_line_too(gpu, capsys):
    gpu.run_apart("noise", options(limit=1 - gpu.GRACE))
    assert said(capsys) == [{"section": "noise", "error": "killed after 1 s"}]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is one")
def test_without_an_accelerator_it_says_so(gpu, capsys):
    gpu.run_here("machine", options(tiny=False))
    assert "no accelerator here; --tiny" in said(capsys)[0]["error"]
