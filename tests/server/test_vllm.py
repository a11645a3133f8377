"""A real vLLM server on the CPU answers as the model does here. `make test-server` runs this.

MRPO_VLLM_PYTHON is the Python of an environment with vLLM. Figures are printed at the end of each
test; docs/generate.md has those of one run.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import scipy.stats
import torch
from running import NAME, PYTHON, running
from transformers import AutoModelForCausalLM

from mrpo_tools.cache import Cache
from mrpo_tools.config import Reference
from mrpo_tools.groups import Group
from mrpo_tools.judging import judge_of
from mrpo_tools.judging.ensure import ensure_verdicts
from mrpo_tools.judging.questions import question
from mrpo_tools.references.resolved import renderer_of, resolve
from mrpo_tools.sampling import Samples, Sampling, sample_groups
from mrpo_tools.server import Server

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not PYTHON, reason="MRPO_VLLM_PYTHON names no Python with vLLM"),
    pytest.mark.timeout(3600),
]
PROMPTS, DRAWS = 40, 2000
SURE = 1e-4
"""A right sampler fails a test of chance once in so many servers; a wrong one must be surer."""


@dataclass(frozen=True)
class Served:
    """A model's directory, and the server that runs it."""

    reference: Reference
    server: Server


@pytest.fixture(scope="session")
def served(tiny_llama, tmp_path_factory) -> Iterator[Served]:
    """vLLM, from its start to its first answer."""
    with running(tiny_llama, tmp_path_factory.mktemp("log") / "vllm.log") as url:
        yield Served(Reference(model=str(tiny_llama), dtype="float32"), Server(url))


def contents(samples: Samples) -> list[list[tuple[str, str | None]]]:
    return [[(each.content, each.finish_reason) for each in group.responses]
            for group in samples.answered]  # fmt: skip


def test_greedy_answers_are_those_of_the_model_here(served, demo_groups, tmp_path):
    asked = demo_groups[:PROMPTS]
    way = Sampling(max_new_tokens=24)
    here = sample_groups(served.reference, asked, way, tmp_path)
    there = sample_groups(served.reference, asked, way, tmp_path, server=served.server)
    assert there.sampler["engine"] == "server"
    reasons = Counter(reason for own in contents(here) for _, reason in own)
    assert min(reasons["stop"], reasons["length"]) >= 3  # both ends are met
    equal = sum(a == b for a, b in zip(contents(here), contents(there), strict=True))
    print(f"\ngreedy: {equal} of {len(here.answered)} answers equal, {dict(reasons)}")
    assert equal == len(here.answered)


def expected_shares(served: Served, group: Group, temperature: float) -> dict[str, float]:
    """The shares of first tokens by what they say, from the library's own model."""
    renderer = renderer_of(resolve("tiny", served.reference))
    ids = renderer.encode_prompt(group.prompt)
    model = AutoModelForCausalLM.from_pretrained(served.reference.model, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1].double()
    shares: dict[str, float] = {}
    for token, share in enumerate((logits / temperature).softmax(-1).tolist()):
        text = whole(renderer.tokenizer.decode([token], skip_special_tokens=True).strip())
        shares[text] = shares.get(text, 0.0) + share
    return shares


def whole(text: str) -> str:
    """Half a character counts as silence: engines that decode as they go hold it back."""
    return "" if "\N{REPLACEMENT CHARACTER}" in text else text


def p_value(counts: Counter[str], shares: dict[str, float]) -> float:
    """Of a chi-square test; what is expected less than five times is one bin."""
    total = counts.total()
    often = [text for text, share in shares.items() if share * total >= 5]
    observed = [counts[text] for text in often]
    expected = [shares[text] * total for text in often]
    rest = total - sum(expected)
    if rest > 1e-9:
        observed.append(total - sum(observed))
        expected.append(rest)
    scale = total / sum(expected)
    return float(scipy.stats.chisquare(observed, [value * scale for value in expected]).pvalue)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_first_tokens_are_drawn_alike(served, demo_groups, tmp_path, temperature):
    """Both follow the model's softmax, and the test sees one that is 1.3 times as hot."""
    [group] = demo_groups[:1]
    way = Sampling(DRAWS, temperature, max_new_tokens=1, seed=11)
    shares = expected_shares(served, group, temperature)
    wrong = expected_shares(served, group, 1.3 * temperature)
    for server in (None, served.server):
        started = time.monotonic()
        samples = sample_groups(served.reference, [group], way, tmp_path, server=server)
        seconds = time.monotonic() - started
        [answered] = samples.answered
        counts = Counter(whole(each.content) for each in answered.responses)
        right, other = p_value(counts, shares), p_value(counts, wrong)
        name = "vLLM" if server else "here"
        print(
            f"\n{name}, temperature {temperature}: {DRAWS} first tokens, {len(counts)} different, "
            f"p = {right:.3f}; of a wrong temperature p = {other:.1e}; {seconds:.1f} s"
        )
        assert right > SURE
        assert other < SURE**2


def test_top_k_and_top_p_leave_out_the_same_tokens(served, demo_groups, tmp_path):
    [group] = demo_groups[1:2]
    shares = expected_shares(served, group, 1.0)
    for words in ({"top_k": 5}, {"top_p": 0.5}):
        way = replace(Sampling(300, 1.0, max_new_tokens=1, seed=2), **words)
        texts = [
            {whole(each.content) for each in samples.answered[0].responses}
            for samples in (
                sample_groups(served.reference, [group], way, tmp_path, server=server)
                for server in (None, served.server)
            )
        ]
        every = texts[0] | texts[1]
        assert len(every) <= (5 if "top_k" in words else len(shares) // 2)
        rare = {text for text in every if shares[text] < 0.03}
        assert texts[0] - rare == texts[1] - rare


def test_what_stops_and_goes_on_asks_for_nothing_twice(served, demo_groups, tmp_path):
    asked = demo_groups[:8]
    way = Sampling(2, 1.0, max_new_tokens=16, seed=3)
    first = sample_groups(served.reference, asked, way, tmp_path, server=served.server)
    more = sample_groups(served.reference, asked, replace(way, n=5), tmp_path, server=served.server)
    assert (first.generated, more.generated) == (16, 24)
    assert [own[:2] for own in contents(more)] == contents(first)


SHORT = """labels: A, B
---
---
{{mark}} {{prompt}} {{first}} {{second}} Reply A or B.
"""
"""A template that fits a tiny model's context."""


def test_a_real_model_is_asked_as_a_judge(served, demo_groups, tmp_path):
    """Its words are noise, so what counts is that every question gets a status, that what could be
    read is kept, and that it alone is not asked again."""
    template = tmp_path / "short.txt"
    template.write_text(SHORT, encoding="utf-8")
    judge = judge_of(f"{served.server.base}#{NAME}", str(template), max_tokens=16)
    asked = [
        question(group, order[0], order[1])
        for group in demo_groups[:12]
        for order in (group.responses[:2], group.responses[1::-1])
    ]
    cache = Cache(tmp_path / "cache")
    first = ensure_verdicts(judge, asked, cache)
    statuses = Counter(row.status for row in first.rows.values())
    print(f"\njudge: {dict(statuses)}")
    assert sum(statuses.values()) == len(asked) == 24
    assert set(statuses) <= {"ok", "unusable", "length"}
    again = ensure_verdicts(judge, asked, cache)
    assert again.asked == statuses["unusable"]
