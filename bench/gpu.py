"""The 16-bit route on one GPU, in figures: random weights, no data, no network.

    python bench/gpu.py all --output docs/gpu.jsonl      every section, each in a process of its own
    python bench/gpu.py table docs/gpu.jsonl             the tables of docs/performance.md
    python bench/gpu.py kernels noise                    some sections, in this process
    python bench/gpu.py all --tiny                       a rehearsal of everything on a CPU

Models have the 7-8B shapes of Llama, Mistral and Qwen. Their weights are made on the device, the
head so that logits have a standard deviation of 4, as those of trained models do: rounding depends
on how large numbers are, not on what they mean.

    machine   what it is, and the peak of its matrix products
    kernels   attention over trees, forward and backward, against float32 with a mask of the line
    noise     what every route differs by from plain rows alone, and which one `self_check` takes
    memory    rows of 8k, 32k and 128k tokens: predicted and measured
    score     tokens a second of every route and batch size, against padded rows with whole logits
    train     a LoRA step as `mrpo train` makes it, against one on padded rows with whole logits
    profile   which kernels the time of scoring and of a step goes to

It needs torch 2.11, transformers 5.17, peft, pydantic and pyyaml, or newer, and nothing else of the
project's libraries; where the project is not installed, `PYTHONPATH=.`. Every measurement is a line
of JSON, added to `--output` (`all` begins the file anew). One that fails is a line with its error;
the others go on. A section stops between two measurements when `--limit` seconds are over.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata as metadata
import json
import math
import platform
import random
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import logsigmoid, scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from torch.profiler import ProfilerActivity
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from mrpo_tools.references.devices import (
    peak_flops,
    peak_memory_bytes,
    pick_device,
    reset_peak_memory,
)
from mrpo_tools.references.loading import add_lora, quiet_libraries
from mrpo_tools.scorer.attention import TREE, missing_variable_length
from mrpo_tools.scorer.blueprint import Blueprint
from mrpo_tools.scorer.memory import LiveBytes, step_bytes, working_bytes
from mrpo_tools.scorer.scorer import (
    ALONE,
    ResponseScorer,
    Route,
    response_logps,
    response_token_logps,
    to_device,
)
from mrpo_tools.scorer.self_check import self_check
from mrpo_tools.scorer.trees import Row, attention_mask, collate

Facts = dict[str, Any]
"""One measurement: what it is of and its figures, their units in the names; or an error."""
Work = Callable[[], Any]

MIB = 2**20
LOGIT_STD = 4.0
SHORTER = 32
"""How many times shorter rows are in the rehearsal."""
FEWER = 4
"""How many times fewer heads and prompts it has."""
BATCH_TOKENS = 8192


class Shape(NamedTuple):
    """The sizes of a decoder."""

    config: Callable[..., PreTrainedConfig]
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    window: int | None = None


SHAPES = {
    "llama": Shape(LlamaConfig, 128_256, 4096, 14_336, 32, 32, 8),  # Llama 3.1 8B
    "mistral": Shape(MistralConfig, 32_000, 4096, 14_336, 32, 32, 8, window=4096),  # 7B v0.1
    "qwen": Shape(Qwen2Config, 152_064, 3584, 18_944, 28, 28, 4),  # Qwen2.5 7B
}
POSITIONS = 131_072


@dataclass(frozen=True)
class Bench:
    """Where it runs and how large everything is.

    Attributes:
        tiny: two-layer models and short rows on a CPU, instead of the real ones.
        models: names in `SHAPES`.
    """

    tiny: bool
    models: Sequence[str]

    @cached_property
    def device(self) -> torch.device:
        """The accelerator; of a rehearsal the CPU."""
        device = torch.device("cpu") if self.tiny else pick_device()
        if device.type == "cpu" and not self.tiny:
            raise RuntimeError("no accelerator here; --tiny rehearses on a CPU")
        return device

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of what is measured for speed and memory."""
        return torch.float32 if self.tiny else torch.bfloat16

    @cached_property
    def peak(self) -> float:
        """Operations a second of a matrix product."""
        return peak_flops(self.device, self.dtype)

    def short(self, length: int) -> int:
        """A number of tokens, smaller in a rehearsal."""
        return max(1, length // SHORTER) if self.tiny else length

    def few(self, count: int) -> int:
        """A number of heads or of prompts, smaller in a rehearsal."""
        return count // FEWER if self.tiny else count

    def shape(self, name: str) -> Shape:
        """What a name stands for."""
        if not self.tiny:
            return SHAPES[name]
        return SHAPES[name]._replace(
            vocabulary=512, hidden=64, intermediate=128, layers=2, heads=4, key_heads=2,
            window=SHAPES[name].window and 16,
        )  # fmt: skip

    def config(self, name: str) -> PreTrainedConfig:
        """In transformers' own class."""
        shape = self.shape(name)
        window = {} if shape.window is None else {"sliding_window": shape.window}
        return shape.config(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_heads,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=False,
            **window,
        )

    def model(self, name: str, dtype: torch.dtype | None = None) -> Any:
        """A causal LM of random weights, made on the device."""
        free_memory()
        torch.manual_seed(0)
        with torch.device(self.device):
            model: Any = AutoModelForCausalLM.from_config(
                self.config(name), dtype=dtype or self.dtype
            )
        head = model.get_output_embeddings().weight
        with torch.no_grad():  # the last norm gives states of unit size
            head.normal_(0, LOGIT_STD / math.sqrt(head.shape[1]))
        return model.eval()

    def trees(
        self,
        name: str,
        answers: Sequence[int],
        prompt: tuple[int, int] = (50, 500),
        answer: tuple[int, int] = (50, 500),
    ) -> list[Row]:
        """Prompts with made-up responses, the same at every call.

        Args:
            name: of a model, for its vocabulary.
            answers: how many each prompt has.
            prompt, answer: the shortest and the longest, in tokens.
        """
        chance = random.Random(0)
        vocabulary = self.shape(name).vocabulary

        def ids(bounds: tuple[int, int]) -> list[int]:
            return chance.choices(range(3, vocabulary), k=self.short(chance.randint(*bounds)))

        starts = accumulate(answers, initial=0)
        return [
            Row(ids(prompt), [ids(answer) for _ in range(count)], range(start, start + count))
            for count, start in zip(answers, starts, strict=False)
        ]


def tried(measure: Callable[[], Facts], **labels: Any) -> Facts:
    """Labels with the figures of a measurement, or with its error."""
    try:
        return labels | measure()
    except Exception as error:
        reason = described_error(error)
    free_memory()
    return labels | {"error": reason}


def described_error(error: Exception) -> str:
    """Its kind and what it says, if that is short."""
    return f"{type(error).__name__}: {error}"[:400]


def free_memory() -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def wait_for(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds_of(work: Work, device: torch.device, times: int = 3) -> float:
    """The quickest of some runs."""
    quickest = math.inf
    for _ in range(times):
        wait_for(device)
        started = time.perf_counter()
        work()
        wait_for(device)
        quickest = min(quickest, time.perf_counter() - started)
    return quickest


def peak_mib(work: Work, device: torch.device) -> float:
    """The most memory of some work beyond what was held before it; on a CPU that of tensors."""
    if device.type == "cpu":
        with LiveBytes() as live:
            work()  # after this the weights are known
            before = live.begin()
            work()
        return (live.peak - before) / MIB
    reset_peak_memory(device)
    before = torch.accelerator.memory_allocated(device)
    work()
    return (peak_memory_bytes(device) - before) / MIB


def kept_mib(work: Work, device: torch.device) -> float:
    """Memory that what some work returns holds on to."""
    if device.type == "cpu":
        with LiveBytes() as live:
            work()  # after this the weights are known
            before, made = live.live, work()
            kept = live.live - before
    else:
        before = torch.accelerator.memory_allocated(device)
        made = work()
        kept = torch.accelerator.memory_allocated(device) - before
    del made
    return kept / MIB


def plain_rows(trees: Iterable[Row]) -> list[Row]:
    """A row for each response."""
    return [
        Row(tree.prompt, [response], [key])
        for tree in trees
        for response, key in zip(tree.responses, tree.keys, strict=True)
    ]


def scorer_of(model: Any, trees: Sequence[Row], device: torch.device) -> ResponseScorer:
    """A scorer on the route that `self_check` takes."""
    scorer = ResponseScorer(model)
    self_check(scorer, trees, device)
    return scorer


def machine(bench: Bench) -> Iterator[Facts]:
    """The device, the versions, and how fast matrix products are."""
    facts: Facts = {"date": datetime.date.today().isoformat(), "device": platform.machine()}
    if bench.device.type == "cuda":
        properties = torch.cuda.get_device_properties(bench.device)
        facts |= {"device": properties.name, "memory_gib": properties.total_memory / 2**30}
    facts["cuda"] = torch.version.cuda
    facts["versions"] = {name: metadata.version(name) for name in ("torch", "transformers", "peft")}
    facts["dtype"] = str(bench.dtype).removeprefix("torch.")
    facts["missing_kernel"] = missing_variable_length(bench.device, bench.dtype)
    yield facts | {"peak_tflops": bench.peak / 1e12}


HEADS = (
    # heads, key heads, numbers of a head, window
    (32, 8, 128, None), (32, 8, 128, 512), (28, 4, 128, None), (32, 32, 96, None),
    (32, 32, 96, 512), (16, 8, 256, None), (16, 8, 256, 512),
)  # fmt: skip
LINE = ((900, (600, 1, 1100)), (1, (40,)), (600, (800, 54)))
"""Trees of a line of 4,096 tokens: their prompts, and their responses."""
BY_TREES = [name for name in AttentionInterface() if name.startswith(TREE)]
"""Attention functions over trees that are registered with transformers."""
BY_MASK = "mask"
"""SDPA with one mask of the whole line."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries [1, H, T, E], keys and values [1, G, T, E] -> [1, T, H, E]."""


def kernels(bench: Bench) -> Iterator[Facts]:
    """Each way of attention in bfloat16 against float32: output and gradients, and time."""
    trees = [
        Row([5] * bench.short(prompt), [[6] * bench.short(count) for count in answers],
            range(len(answers)))
        for prompt, answers in LINE
    ]  # fmt: skip
    for heads, key_heads, size, window in HEADS:
        window = window and bench.short(window)
        heads, key_heads = bench.few(heads), bench.few(key_heads)
        seen = line_mask(trees, window).to(bench.device)
        torch.manual_seed(0)
        inputs = [
            torch.randn(1, count, len(seen), size, device=bench.device, dtype=torch.bfloat16)
            for count in (heads, key_heads, key_heads, heads)
        ]
        with sdpa_kernel(SDPBackend.MATH):
            exact = with_gradients(partial(by_mask, seen), [part.float() for part in inputs])
        for name in (*BY_TREES, BY_MASK):
            attend = partial(by_mask, seen) if name == BY_MASK else by_trees(name, trees, window)
            measure = partial(compared, attend, inputs, exact, bench.device)
            yield tried(measure, attention=name, heads=heads, key_heads=key_heads, size=size,
                        window=window, tokens=len(seen))  # fmt: skip


def line_mask(trees: Sequence[Row], window: int | None) -> Tensor:
    """[T, T] bool: which tokens of a packed line a token sees, by the masks of its trees."""
    batches = [collate([tree]) for tree in trees]
    masks = [attention_mask(batch["segments"], batch["position_ids"], window) for batch in batches]
    return torch.block_diag(*(mask[0, 0] for mask in masks))


def by_mask(seen: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What attention over a line is, by definition."""
    states = scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=True)
    return states.transpose(1, 2)


def by_trees(name: str, trees: Sequence[Row], window: int | None) -> Attend:
    """An attention function that is registered with transformers, over a packed line."""
    forest = collate(trees, packed=True)["forest"]

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        function: Any = AttentionInterface()[name]
        layer = torch.nn.Module()
        return function(layer, query, key, value, None, sliding_window=window, forest=forest)[0]

    return attend


def with_gradients(attend: Attend, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Output and gradients of query, key and value.

    Args:
        attend: a way of attention.
        inputs: query, key, value, and the output's gradient as [1, H, T, E].
    """
    leaves = [part.detach().requires_grad_() for part in inputs[:3]]
    output = attend(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, inputs[3].transpose(1, 2))]


def compared(
    attend: Attend, inputs: Sequence[Tensor], exact: Sequence[Tensor], device: torch.device
) -> Facts:
    """Errors as a share of what is exact, both root mean squares; milliseconds."""
    names = ("output", "query", "key", "value")
    errors = {
        name: float((part.float() - whole).square().mean().sqrt() / whole.square().mean().sqrt())
        for name, part, whole in zip(names, with_gradients(attend, inputs), exact, strict=True)
    }
    with torch.no_grad():
        forward = seconds_of(lambda: attend(*inputs[:3]), device)
    both = seconds_of(lambda: with_gradients(attend, inputs), device)
    return {"relative_error": errors, "forward_ms": forward * 1e3, "with_backward_ms": both * 1e3}


SAMPLES = {
    # responses of the prompts; tokens of the shortest and the longest response
    "short": ((1, 2, 4) * 8, (20, 120)),
    "long": ((1, 2, 4) * 3, (1000, 2000)),
}
FLOAT32 = "float32"
Logps = dict[int, Tensor]
"""Log-probs of a response's tokens, nats, by its key."""


def noise(bench: Bench) -> Iterator[Facts]:
    """Every route against plain rows alone, in bfloat16; how far those are from float32."""
    for name in bench.models:
        scorer = ResponseScorer(bench.model(name, torch.bfloat16))
        samples = {
            kind: bench.trees(name, answers, answer=bounds)
            for kind, (answers, bounds) in SAMPLES.items()
        }
        alone = {kind: token_logps(scorer, ALONE, trees, bench) for kind, trees in samples.items()}
        for kind, trees in samples.items():
            labels = {"model": name, "responses": kind}
            for route in scorer.routes:
                for batched in {False, route.batched}:
                    measure = partial(differing, scorer, route, trees, bench, alone[kind], batched)
                    yield tried(measure, **labels, route=route.name, batched=batched)
            yield tried(partial(self_checked, scorer, trees, bench.device), **labels)
        scorer.float()  # the weights keep their values
        for kind, trees in samples.items():
            measure = partial(differing, scorer, ALONE, trees, bench, alone[kind])
            yield tried(measure, model=name, responses=kind, route=FLOAT32, batched=False)


def token_logps(
    scorer: ResponseScorer, route: Route, trees: Sequence[Row], bench: Bench, batched: bool = False
) -> Logps:
    """Log-probs of every token by a route, its rows in batches or alone."""
    scorer.take(route)
    planned = scorer.batches(trees, bench.short(BATCH_TOKENS))
    if not batched:
        planned = [[row] for rows in planned for row in rows]
    logps: Logps = {}
    for rows in planned:
        keys = [key for row in rows for key in row.keys]
        logps |= zip(keys, response_token_logps(scorer, rows, bench.device), strict=True)
    return logps


def differing(
    scorer: ResponseScorer, route: Route, trees: Sequence[Row], bench: Bench, alone: Logps,
    batched: bool = False,
) -> Facts:  # fmt: skip
    """What a route's numbers differ by from those of plain rows alone."""
    return apart(token_logps(scorer, route, trees, bench, batched), alone)


def apart(logps: Logps, others: Logps) -> Facts:
    """How far tokens are from others, in nats.

    Returns:
        `rms`, `bias` (the mean) and `max` of the differences; `sums_rms` of D/√L, D the sum over a
        response of L tokens: it is rms again where tokens differ independently.
    """
    differences = {key: (logps[key] - values).double() for key, values in others.items()}
    tokens = torch.cat(list(differences.values()))
    sums = torch.stack([values.sum() / len(values) ** 0.5 for values in differences.values()])
    return {
        "rms": float(tokens.square().mean().sqrt()),
        "bias": float(tokens.mean()),
        "max": float(tokens.abs().max()),
        "sums_rms": float(sums.square().mean().sqrt()),
        "tokens": len(tokens),
    }


def self_checked(scorer: ResponseScorer, trees: Sequence[Row], device: torch.device) -> Facts:
    """The route that `self_check` takes, what it measured, and what it refused."""
    started = time.perf_counter()
    checked = self_check(scorer, trees, device)
    return {
        "taken": scorer.route.name,
        "refused": dict(checked.refused),
        "rms": checked.noise.rms,
        "bias": checked.noise.bias,
        "tokens": checked.noise.tokens,
        "seconds": time.perf_counter() - started,
    }


ROW_TOKENS = (8192, 32_768, 131_072)


def memory(bench: Bench) -> Iterator[Facts]:
    """Scoring a row so long that it is a batch of its own: a prompt and two responses."""
    for name in bench.models:
        scorer = scorer_of(bench.model(name), bench.trees(name, (1, 2)), bench.device)
        for tokens in map(bench.short, ROW_TOKENS):
            row = Row([5] * (tokens // 2), [[6] * (tokens // 4), [7] * (tokens // 4)], (0, 1))
            for measure in (long_row, predicted_row):
                yield tried(partial(measure, bench, name, scorer, row), model=name, tokens=tokens)


def long_row(bench: Bench, name: str, scorer: ResponseScorer, row: Row) -> Facts:
    """What it takes beside the weights."""
    seconds: list[float] = []
    work = partial(response_logps, scorer, [row], bench.device)
    peak = peak_mib(lambda: seconds.append(seconds_of(work, bench.device, times=1)), bench.device)
    return {"route": scorer.route.name, "peak_mib": peak, "seconds": seconds[-1]}


def predicted_row(bench: Bench, name: str, scorer: ResponseScorer, row: Row) -> Facts:
    """What a dry run says of it."""
    blueprint = Blueprint(bench.config(name), bench.dtype, bench.device, ResponseScorer)
    return {"predicted_mib": working_bytes(blueprint, [row]) / MIB}


BUDGETS = (BATCH_TOKENS, 4096, 16_384, 32_768)
"""Tokens of a batch; routes that are not the fastest are measured with the first."""
PADDED_ROWS = (4, 8, 16, 32)
"""Rows of a padded batch."""
PROMPTS = {4: 24, 2: 32}
"""How many prompts have 4 responses each, and 2."""
TREES, PADDED = "trees", "padded"


def score(bench: Bench) -> Iterator[Facts]:
    """Tokens a second of routes and batch sizes, and of padded rows with whole logits."""
    for name in bench.models:
        model = bench.model(name)
        tasks = {
            answers: Task(bench, name, bench.trees(name, (answers,) * bench.few(count)))
            for answers, count in PROMPTS.items()
        }
        for answers, task in tasks.items():  # before the scorer changes the model's head
            for rows in PADDED_ROWS:
                yield tried(partial(padded_speed, task, model, rows), model=name, answers=answers,
                            route=PADDED, rows=rows)  # fmt: skip
        scorer = ResponseScorer(model)
        for answers, task in tasks.items():
            for route in scorer.routes:
                for budget in BUDGETS if route is scorer.routes[0] else BUDGETS[:1]:
                    yield tried(partial(route_speed, task, scorer, route, budget), model=name,
                                answers=answers, route=route.name, budget=budget)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """Trees to score with a model of that name."""

    bench: Bench
    name: str
    trees: Sequence[Row]

    @property
    def targets(self) -> int:
        """Tokens that are given a log-prob."""
        return sum(len(response) for tree in self.trees for response in tree.responses)

    @cached_property
    def flops(self) -> int:
        """Operations that it needs: see `ResponseScorer.useful_flops`."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self.bench.config(self.name))
        return ResponseScorer(model).useful_flops(sum(map(len, self.trees)), self.targets)

    def figures(self, work: Callable[[], Iterable[float]]) -> Facts:
        """Of one run for memory and for warming up, and one for time.

        Args:
            work: gives the log-prob of each response, in any order.
        """
        device, sums = self.bench.device, []
        peak = peak_mib(lambda: sums.append(math.fsum(work())), device)
        seconds = seconds_of(lambda: list(work()), device, times=1)
        return {
            "seconds": seconds,
            "unique_tokens_per_s": sum(map(len, self.trees)) / seconds,
            "response_tokens_per_s": self.targets / seconds,
            "useful_tflops": self.flops / seconds / 1e12,
            "share_of_peak": self.flops / seconds / self.bench.peak,
            "peak_mib": peak,
            "nats_per_token": sums[0] / self.targets,
        }


def route_speed(task: Task, scorer: ResponseScorer, route: Route, budget: int) -> Facts:
    """A route with batches of at most so many tokens."""
    scorer.take(route)
    planned = scorer.batches(task.trees, task.bench.short(budget))
    device = task.bench.device
    return task.figures(
        lambda: (logp for rows in planned for logp in response_logps(scorer, rows, device))
    )


def padded_speed(task: Task, model: Any, size: int) -> Facts:
    """What trainers do for a reference: plain rows, the longest first, so many in a batch."""
    rows = sorted(plain_rows(task.trees), key=len, reverse=True)
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]

    @torch.no_grad()
    def work() -> list[float]:
        sums = [padded_logps(model, batch, task.bench.device) for batch in batches]
        return torch.cat(sums).tolist()

    return task.figures(work)


def padded_logps(model: Any, rows: Sequence[Row], device: torch.device) -> Tensor:
    """[R] log-probs of plain rows, padded to the longest, with logits of every position."""
    lines = [torch.tensor([*row.prompt, *row.responses[0]]) for row in rows]
    ids = pad_sequence(lines, batch_first=True).to(device)
    starts = torch.tensor([[len(row.prompt)] for row in rows])
    ends = torch.tensor([[len(row)] for row in rows])
    places = torch.arange(ids.shape[1])
    mask = (places < ends).long().to(device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    logps = [
        line.float().log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        for line, targets in zip(logits, ids[:, 1:], strict=True)
    ]
    answers = ((places >= starts) & (places < ends))[:, 1:].to(device)
    return (torch.stack(logps) * answers).sum(-1)


GROUPS_A_STEP = 4
LORA_RANK = 8


def train(bench: Bench) -> Iterator[Facts]:
    """A step of LoRA on pairs, with and without recomputed activations."""
    measures = ((TREES, tree_step), (TREES, predicted_step), (PADDED, padded_step))
    for name in bench.models:
        trees = bench.trees(name, (2,) * GROUPS_A_STEP)
        for recomputed in (False, True):
            for kind, measure in measures:
                yield tried(partial(measure, bench, name, trees, recomputed), model=name,
                            step=kind, recomputed=recomputed)  # fmt: skip


def with_lora(model: Any) -> Any:
    """A frozen model with a fresh adapter on every linear layer."""
    return add_lora(model, r=LORA_RANK, lora_alpha=LORA_RANK, target_modules="all-linear", seed=0)


def prepare(model: Any, recomputed: bool) -> None:
    """For training, as `mrpo train` does it: with activation checkpointing or without."""
    model.train()
    if recomputed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()


def policy(model: Any, recomputed: bool) -> ResponseScorer:
    """A scorer to train: a frozen model with a fresh adapter."""
    scorer = ResponseScorer(with_lora(model))
    prepare(scorer.model, recomputed)
    return scorer


def tree_step(bench: Bench, name: str, trees: Sequence[Row], recomputed: bool) -> Facts:
    """As `mrpo train` makes it: trees, on the route that `self_check` takes."""
    scorer = policy(bench.model(name), recomputed)
    self_check(scorer, trees, bench.device)
    facts = steps(bench, scorer, partial(tree_logps, scorer, trees, bench.device), trees)
    return facts | {"route": scorer.route.name}


def tree_logps(scorer: ResponseScorer, trees: Sequence[Row], device: torch.device) -> Tensor:
    """[responses] log-probs of one micro-batch, with gradient."""
    batches = [to_device(scorer.collate(rows), device) for rows in scorer.batches(trees)]
    return scorer(batches, len(plain_rows(trees)))


def predicted_step(bench: Bench, name: str, trees: Sequence[Row], recomputed: bool) -> Facts:
    """What a dry run says of that step."""
    blueprint = Blueprint(
        config=bench.config(name),
        dtype=bench.dtype,
        device=bench.device,
        scorer=partial(policy, recomputed=recomputed),
    )
    predicted = step_bytes(blueprint, trees)
    kept = predicted.kept / sum(map(len, trees))
    return {"predicted_mib": predicted.peak / MIB, "predicted_kept_mib_per_token": kept / MIB}


def padded_step(bench: Bench, name: str, trees: Sequence[Row], recomputed: bool) -> Facts:
    """As trainers make it: padded plain rows with whole logits, in 16 bits under autocast."""
    model = with_lora(bench.model(name))
    prepare(model, recomputed)
    rows = plain_rows(trees)

    def logps() -> Tensor:
        with torch.autocast(bench.device.type, bench.dtype, enabled=not bench.tiny):
            return padded_logps(model, rows, bench.device)

    return steps(bench, model, logps, trees)


def steps(
    bench: Bench, module: torch.nn.Module, logps: Callable[[], Tensor], trees: Sequence[Row]
) -> Facts:
    """Figures of steps of AdamW, the first one for warming up.

    Args:
        bench: where.
        module: with the parameters to train.
        logps: [2 · groups] log-probs, the two of each group side by side.
        trees: the groups.
    """
    tokens = sum(map(len, trees))
    trained = [weights for weights in module.parameters() if weights.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    losses: list[float] = []

    def step() -> None:
        pairs = logps().view(-1, 2)
        loss = -logsigmoid(0.1 * (pairs[:, 0] - pairs[:, 1])).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    step()
    seconds = seconds_of(step, bench.device)
    return {
        "seconds": seconds,
        "unique_tokens_per_s": tokens / seconds,
        "kept_mib_per_token": kept_mib(logps, bench.device) / tokens,
        "peak_mib": peak_mib(step, bench.device),
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


SHOWN_KERNELS = 20


def profile(bench: Bench) -> Iterator[Facts]:
    """Scoring of three batches, and forward and backward pass of the step of `train`."""
    for name in bench.models[:1]:
        yield tried(partial(profiled_scoring, bench, name), model=name, work="score")
        yield tried(partial(profiled_step, bench, name), model=name, work="train")


def profiled_scoring(bench: Bench, name: str) -> Facts:
    """Batches of the usual size."""
    trees = bench.trees(name, (2,) * PROMPTS[2])
    scorer = scorer_of(bench.model(name), trees[:2], bench.device)
    planned = scorer.batches(trees, bench.short(BATCH_TOKENS))[:3]
    return kernel_times(
        lambda: [response_logps(scorer, rows, bench.device) for rows in planned], bench.device
    )


def profiled_step(bench: Bench, name: str) -> Facts:
    """Of one micro-batch, without recomputed activations."""
    trees = bench.trees(name, (2,) * GROUPS_A_STEP)
    scorer = policy(bench.model(name), recomputed=False)
    self_check(scorer, trees, bench.device)
    return kernel_times(
        lambda: tree_logps(scorer, trees, bench.device).sum().backward(), bench.device
    )


def kernel_times(work: Work, device: torch.device) -> Facts:
    """The dearest kernels, [name, milliseconds, calls] each, and the device's share of all time.

    On a CPU they are torch's operations.
    """
    work()
    on_cpu = device.type == "cpu"
    activities = [ProfilerActivity.CPU] if on_cpu else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as record:
        seconds = seconds_of(work, device, times=1)
    where = DeviceType.CPU if on_cpu else DeviceType.CUDA
    times = sorted(
        (
            (event.self_cpu_time_total if on_cpu else event.self_device_time_total, event)
            for event in record.key_averages()
            if event.device_type == where and not event.is_user_annotation
        ),
        key=lambda pair: pair[0],
        reverse=True,
    )
    top = [[event.key[:80], spent / 1e3, event.count] for spent, event in times[:SHOWN_KERNELS]]
    busy = sum(spent for spent, _ in times) / 1e6
    return {"seconds": seconds, "busy_share": busy / seconds, "top": top}


SECTIONS: dict[str, Callable[[Bench], Iterator[Facts]]] = {
    "machine": machine,
    "kernels": kernels,
    "noise": noise,
    "memory": memory,
    "score": score,
    "train": train,
    "profile": profile,
}
GRACE = 120
"""Seconds beyond the limit in which a section's last measurement has to end."""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="+", help=f"all, table FILE, or of: {', '.join(SECTIONS)}")
    parser.add_argument("--output", type=Path, help="where lines of JSON are added")
    parser.add_argument("--models", default=",".join(SHAPES), help="of these, with commas")
    parser.add_argument("--limit", type=float, default=300, help="seconds of a section")
    parser.add_argument("--tiny", action="store_true", help="two-layer models on the CPU")
    options = parser.parse_args()
    first, *rest = options.what
    if first == "table":
        print(table(read(Path(*rest))))
        return
    sections = list(SECTIONS) if first == "all" else options.what
    if unknown := set(sections) - SECTIONS.keys():
        parser.error(f"no section {', '.join(sorted(unknown))}")
    if first == "all" and options.output:
        options.output.unlink(missing_ok=True)
    run = run_apart if first == "all" else run_here
    for section in sections:
        run(section, options)


def run_here(section: str, options: argparse.Namespace) -> None:
    """A section in this process; its error, if it ends with one, is its last line."""
    quiet_libraries()
    started = time.perf_counter()
    try:
        for facts in SECTIONS[section](Bench(options.tiny, options.models.split(","))):
            say(options.output, section, facts)
            if time.perf_counter() - started > options.limit:
                raise TimeoutError(f"stopped after {options.limit:.0f} s; the rest is not measured")
    except Exception as error:
        traceback.print_exc()
        say(options.output, section, {"error": described_error(error)})
    say(options.output, "done", {"of": section, "seconds": time.perf_counter() - started})


def run_apart(section: str, options: argparse.Namespace) -> None:
    """A section in a process of its own: an illegal memory access ends that one only."""
    command = [sys.executable, __file__, section, "--models", options.models,
               "--limit", str(options.limit)]  # fmt: skip
    command += ["--output", str(options.output)] if options.output else []
    command += ["--tiny"] if options.tiny else []
    try:
        code = subprocess.run(command, timeout=options.limit + GRACE).returncode
        error = f"the process ended with code {code}" if code else None
    except subprocess.TimeoutExpired:
        error = f"killed after {options.limit + GRACE:.0f} s"
    if error:
        say(options.output, section, {"error": error})


def say(output: Path | None, section: str, facts: Facts) -> None:
    """Print a line of JSON, and add it to the output."""
    line = json.dumps({"section": section, **facts})
    print(line, flush=True)
    if output is not None:
        with output.open("a", encoding="utf-8") as lines:
            lines.write(line + "\n")


def read(path: Path) -> list[Facts]:
    """Lines of JSON."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def of(lines: Sequence[Facts], section: str, figure: str, **labels: Any) -> list[Facts]:
    """Lines of a section that have a figure, with these labels."""
    return [
        line
        for line in lines
        if line["section"] == section
        and figure in line
        and all(line.get(name) == value for name, value in labels.items())
    ]


def fastest(lines: Sequence[Facts], section: str, **labels: Any) -> Facts:
    """The measurement with these labels that took the least time; of none, of no time known."""
    timed = of(lines, section, "seconds", **labels)
    return min(timed, key=lambda line: line["seconds"], default={"seconds": math.nan})


def predicted(lines: Sequence[Facts], section: str, **labels: Any) -> str:
    """The MiB that a dry run says; nothing where none did."""
    dry = of(lines, section, "predicted_mib", **labels)
    return ", ".join(f"{line['predicted_mib']:,.0f}" for line in dry)


def best_batches(lines: Sequence[Facts]) -> list[Facts]:
    """Each route of scoring with its best batch, and how many times as fast as padded rows."""
    best = {}
    for line in of(lines, "score", "seconds"):
        labels = {name: line[name] for name in ("model", "answers", "route")}
        route = fastest(lines, "score", **labels)
        padded = fastest(lines, "score", **(labels | {"route": PADDED}))
        batch = f"{route['rows']} rows" if "rows" in route else f"{route['budget']:,} tokens"
        ratio = padded["seconds"] / route["seconds"]
        best[tuple(labels.values())] = route | {"batch": batch, "ratio": ratio}
    return list(best.values())


def goals(lines: Sequence[Facts]) -> list[Facts]:
    """Each model's fastest route where a prompt has four responses."""
    four = [line for line in best_batches(lines) if line["answers"] == max(PROMPTS)]
    names = dict.fromkeys(line["model"] for line in four)
    return [
        min((line for line in four if line["model"] == name), key=lambda line: line["seconds"])
        for name in names
    ]


def train_rows(lines: Sequence[Facts]) -> list[Facts]:
    """Steps, how many times as fast as on padded rows, and what a dry run says."""
    rows = []
    for line in of(lines, "train", "seconds"):
        same = {name: line[name] for name in ("model", "recomputed")}
        padded = fastest(lines, "train", step=PADDED, **same)
        dry = predicted(lines, "train", step=line["step"], **same)
        rows.append(line | {"ratio": padded["seconds"] / line["seconds"], "predicted": dry})
    return rows


def memory_rows(lines: Sequence[Facts]) -> list[Facts]:
    """What long rows took, and what a dry run says."""
    return [
        line | {"predicted": predicted(lines, "memory", model=line["model"], tokens=line["tokens"])}
        for line in of(lines, "memory", "peak_mib")
    ]


def profile_rows(lines: Sequence[Facts]) -> list[Facts]:
    """The five dearest kernels."""
    return [
        line
        | {"dearest": "; ".join(f"`{name[:40]}` {ms:.3g} ms" for name, ms, _ in line["top"][:5])}
        for line in of(lines, "profile", "top")
    ]


class Table(NamedTuple):
    """A table of the page.

    Attributes:
        title: above it.
        rows: makes its rows of all lines.
        columns: what stands above each, and how it is written of a row.
    """

    title: str
    rows: Callable[[Sequence[Facts]], list[Facts]]
    columns: dict[str, str]


TABLES = (
    Table("Scoring four responses a prompt, by the fastest route", goals, {
        "model": "{model}",
        "unique tokens/s (goal ≥ 36,000)": "{unique_tokens_per_s:,.0f}",
        "useful work of the matrix-product peak (≥ 60 %)": "{share_of_peak:.0%}",
        "times as fast as padded rows at their best batch (≥ 2)": "{ratio:.2f}",
    }),
    Table("Scoring", best_batches, {
        "model": "{model}", "responses": "{answers}", "route": "{route}", "best batch": "{batch}",
        "unique tokens/s": "{unique_tokens_per_s:,.0f}", "useful TFLOP/s": "{useful_tflops:.3g}",
        "of the peak": "{share_of_peak:.0%}", "× padded": "{ratio:.2f}",
        "MiB beside the weights": "{peak_mib:,.0f}",
    }),
    Table("A step of LoRA on four pairs", train_rows, {
        "model": "{model}", "step": "{step}", "recomputed": "{recomputed}", "s": "{seconds:.3f}",
        "unique tokens/s": "{unique_tokens_per_s:,.0f}", "× padded": "{ratio:.2f}",
        "kept MiB/token": "{kept_mib_per_token:.2f}", "MiB": "{peak_mib:,.0f}",
        "predicted": "{predicted}",
    }),
    Table("Scoring one long row", memory_rows, {
        "model": "{model}", "tokens": "{tokens:,}", "route": "{route}", "s": "{seconds:.2f}",
        "MiB beside the weights": "{peak_mib:,.0f}", "predicted": "{predicted}",
    }),
    Table("bfloat16 against plain rows alone, nats per token",
          partial(of, section="noise", figure="sums_rms"), {
        "model": "{model}", "responses": "{responses}", "route": "{route}",
        "in batches": "{batched}", "rms": "{rms:.2g}", "bias": "{bias:.2g}", "max": "{max:.2g}",
        "rms of sums/√L": "{sums_rms:.2g}",
    }),
    Table("The route that the self-check takes", partial(of, section="noise", figure="taken"), {
        "model": "{model}", "responses": "{responses}", "route": "{taken}", "rms": "{rms:.2g}",
        "bias": "{bias:.2g}", "s": "{seconds:.2g}", "refused": "{refused}",
    }),
    Table("Attention over a line of trees, against float32",
          partial(of, section="kernels", figure="relative_error"), {
        "heads": "{heads}/{key_heads} × {size}", "window": "{window}", "attention": "{attention}",
        "error of output": "{relative_error[output]:.2g}", "dq": "{relative_error[query]:.2g}",
        "dk": "{relative_error[key]:.2g}", "dv": "{relative_error[value]:.2g}",
        "forward ms": "{forward_ms:.3g}", "with backward": "{with_backward_ms:.3g}",
    }),
    Table("Profile", profile_rows, {
        "work": "{work}", "s": "{seconds:.3f}", "device busy": "{busy_share:.0%}",
        "dearest kernels": "{dearest}",
    }),
)  # fmt: skip
WORDS: dict[Any, str] = {None: "none", True: "yes", False: "no"}


def table(lines: Sequence[Facts]) -> str:
    """Every section as Markdown: the goals first, the errors last."""
    parts = [described(line) for line in of(lines, "machine", "peak_tflops")]
    for title, rows_of, columns in TABLES:
        rows = [[form.format(**worded(row)) for form in columns.values()] for row in rows_of(lines)]
        cells = [list(columns), ["---"] * len(columns), *rows]
        if rows:
            parts.append(f"**{title}**\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in cells))
    parts += [f"- {line['section']}: {line['error']}" for line in lines if "error" in line]
    return "\n\n".join(parts)


def worded(row: Facts) -> Facts:
    """A row with words for what is no figure."""
    return {
        name: WORDS[value] if value is None or isinstance(value, bool) else value
        for name, value in row.items()
    }


def described(line: Facts) -> str:
    """The machine in two sentences."""
    versions = [f"{name} {version}" for name, version in line["versions"].items()]
    return (
        f"{', '.join([line['date'], line['device'], *versions])}, CUDA {line['cuda']}; "
        f"{line['dtype']} matrix products at {line['peak_tflops']:.3g} TFLOP/s. "
        f"Attention over trees: {line['missing_kernel'] or 'its fastest kernel'}."
    )


if __name__ == "__main__":
    main()
