"""What a data set of groups costs on so many GPUs: operations, hours, memory, disk, by arithmetic.

    python bench/plan.py                          # the tables of docs/scaling.md
    python bench/plan.py --gpus 4 --peak 312e12 --share 0.35 --prompts 10000 --references 2

Nothing is measured here. Operations are counted as docs/performance.md counts them; hours are these
over `peak` times `share`; gigabytes of a step are those of the table in docs/performance.md.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
ROW_BYTES = 45  # of a response in the cache, as `mrpo precompute --dry-run` reckons
PASSES = {"lora": 2, "full": 3}  # forward passes that a forward and a backward pass are worth
STATES = 16  # bytes of a trained float32 parameter: itself, its gradient, two of AdamW


@dataclass(frozen=True)
class Shape:
    """A decoder: Mistral 7B's numbers, for any of 7B."""

    hidden: int = 4096
    inner: int = 14336
    layers: int = 32
    keys: int = 1024  # width of the key and value heads together
    vocabulary: int = 32768
    rank: int = 8  # of an adapter on all linear layers

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Of one layer: query, key, value, output; gate, up, down."""
        h, k, i = self.hidden, self.keys, self.inner
        return [(h, h), (h, k), (h, k), (h, h), (h, i), (h, i), (i, h)]

    @property
    def decoder(self) -> int:
        """Parameters that every token meets."""
        return self.layers * sum(rows * columns for rows, columns in self.matrices)

    @property
    def parameters(self) -> int:
        """All of them; norms left out."""
        return self.decoder + 2 * self.vocabulary * self.hidden

    @property
    def adapter(self) -> int:
        """Parameters of the adapter."""
        return self.layers * self.rank * sum(rows + columns for rows, columns in self.matrices)

    @property
    def nf4_bytes(self) -> float:
        """Of QLoRA's weights: the decoder's half a byte with its scales, 16 bits for the rest."""
        return self.decoder * (0.5 + 1 / 64 + 4 / 16384) + 2 * (self.parameters - self.decoder)


@dataclass(frozen=True)
class Data:
    """Averages of a data set, in tokens."""

    prompts: int = 61_135
    responses: int = 4
    prompt: float = 185.1
    response: float = 305.3

    @property
    def group(self) -> float:
        """Tokens of a group whose prompt is computed once."""
        return self.prompt + self.responses * self.response

    @property
    def rows(self) -> float:
        """The same with the prompt beside every response."""
        return self.responses * (self.prompt + self.response)

    def operations(self, shape: Shape) -> float:
        """Of a forward pass over one group: layers, head, attention."""
        pairs = self.prompt**2 / 2
        pairs += self.responses * (self.response * self.prompt + self.response**2 / 2)
        head = 2 * shape.hidden * shape.vocabulary * self.responses * self.response
        return 2 * shape.decoder * self.group + head + 4 * shape.hidden * shape.layers * pairs


@dataclass(frozen=True)
class Plan:
    """A data set, a shape, and what is assumed of the machines.

    Args:
        references: K.
        peak: operations a second of one GPU, by its vendor; 989e12 is an H100's in bfloat16.
        share: of the peak that is useful work.
        apart: share left where the GPUs of one node, or of several, wait for each other.
        links: bytes a second of one GPU inside a node, and between nodes.
        step_groups: groups of an optimizer step, at least one a GPU.
        micro_batch: groups of a micro-batch.
    """

    data: Data = Data()
    shape: Shape = Shape()
    references: int = 3
    peak: float = 989e12
    share: float = 0.4
    apart: tuple[float, float] = (0.9, 0.8)
    links: tuple[float, float] = (400e9, 50e9)
    step_groups: int = 128
    micro_batch: int = 2

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return math.ceil(self.data.prompts / self.step_groups)

    @property
    def pass_hours(self) -> float:
        """One forward pass over the data on one GPU."""
        operations = self.data.prompts * self.data.operations(self.shape)
        return operations / (self.peak * self.share) / 3600

    def phase1_hours(self, gpus: int) -> float:
        """All references; processes are independent of each other."""
        return self.references * self.pass_hours / gpus

    def phase2_hours(self, kind: str, gpus: int) -> float:
        """An epoch, whatever the number of references; recomputing costs a forward pass. Moving
        sharded parameters is hidden behind the work as far as it takes no longer."""
        apart = 1.0 if gpus == 1 else self.apart[gpus > 8]
        work = (PASSES[kind] + 1) * self.pass_hours / gpus / apart
        return max(work, self.moving_hours(gpus)) if kind == "full" else work

    def moving_hours(self, gpus: int) -> float:
        """What FSDP2 moves in an epoch, if it were all that it did."""
        micro_batches = math.ceil(self.step_groups / gpus / self.micro_batch)
        return self.steps * micro_batches * self.gather_seconds(gpus) / 3600

    @property
    def cache_megabytes(self) -> float:
        """Of all references."""
        return self.references * self.data.prompts * self.data.responses * ROW_BYTES / 1e6

    def full_gigabytes(self, gpus: int) -> float:
        """Of full finetuning, weights, gradients and AdamW's states sharded over the GPUs."""
        states = STATES * self.shape.parameters / 1e9
        return states / gpus + table_gigabytes("full, checkpointing") - states

    def gather_seconds(self, gpus: int) -> float:
        """Moving a micro-batch's parameters: bfloat16 gathered for the forward, the recomputed and
        the backward pass, float32 gradients scattered."""
        moved = (3 * 2 + 4) * self.shape.parameters * (gpus - 1) / gpus
        return moved / self.links[gpus > 8]


def table_gigabytes(work: str) -> float:
    """What the dry run reckons for a Mistral 7B and 2,048 tokens, as docs/performance.md has it."""
    found = re.search(rf"^\| Mistral-7B \| {work} \| ([\d.]+) \|", PAGE.read_text("utf-8"), re.M)
    if found is None:
        raise SystemExit(f"{PAGE} has no line for a Mistral-7B, {work}")
    return float(found[1])


def hours(value: float) -> str:
    return f"{value:.1f} h" if value >= 1 else f"{60 * value:.0f} min"


def counts(plan: Plan) -> Iterator[tuple[str, str]]:
    """The arithmetic, a line each."""
    data, shape, total = plan.data, plan.shape, plan.peak * plan.share
    layers, rows = 2 * shape.decoder * data.group, data.prompts * data.responses
    yield (
        "tokens of a group",
        f"{data.prompt} + {data.responses} × {data.response} = {data.group:,.1f}",
    )
    yield "the same in plain rows", f"{data.rows:,.1f}, {data.rows / data.group:.2f} times as many"
    yield "tokens of the data, one reference", f"{data.prompts * data.group / 1e6:.1f} M"
    yield "parameters", f"{shape.parameters / 1e9:.3f} G, {shape.decoder / 1e9:.3f} G in layers"
    yield "operations of a group, forward", f"{data.operations(shape) / 1e12:.2f} T"
    yield "of these the layers' matrices", f"{layers / data.operations(shape):.1%}"
    yield "forward pass over the data", f"{data.prompts * data.operations(shape) / 1e18:.3f} E"
    yield (
        "useful operations a second",
        f"{plan.peak / 1e12:.0f} T × {plan.share:.2f} = {total / 1e12:.0f} T",
    )
    yield (
        "unique tokens a second",
        f"{data.prompts * data.group / plan.pass_hours / 3600:,.0f}",
    )
    yield "forward pass on one GPU", hours(plan.pass_hours)
    yield (
        "cache",
        f"{plan.references} × {rows:,} rows × {ROW_BYTES} B = {plan.cache_megabytes:.0f} MB",
    )
    yield "adapter of rank 8, all linear layers", f"{shape.adapter / 1e6:.1f} M parameters"
    yield "a checkpoint of it, 12 B a parameter", f"{12 * shape.adapter / 1e6:.0f} MB"
    yield "a checkpoint of full finetuning", f"{12 * shape.parameters / 1e9:.0f} GB"
    yield "weights of QLoRA", f"{shape.nf4_bytes / 1e9:.1f} GB"


def plans(plan: Plan, gpus: Sequence[int]) -> Iterator[list[str]]:
    """Rows: what, then a cell for each number of GPUs."""
    scoring, lora = (table_gigabytes(work) for work in ("log-probs", "LoRA, checkpointing"))
    split = [plan.step_groups / n for n in gpus]
    yield ["phase 1", *(hours(plan.phase1_hours(n)) for n in gpus)]
    yield ["memory a GPU", *(f"{scoring:.1f} GB" for _ in gpus)]
    yield ["phase 2, LoRA, an epoch", *(hours(plan.phase2_hours("lora", n)) for n in gpus)]
    yield ["memory a GPU", *(f"{lora:.1f} GB" for _ in gpus)]
    yield ["phase 2, full, an epoch", *(hours(plan.phase2_hours("full", n)) for n in gpus)]
    yield ["of it moving parameters", *(hours(plan.moving_hours(n)) for n in gpus)]
    yield ["memory a GPU", *(f"{plan.full_gigabytes(n):.1f} GB" for n in gpus)]
    yield ["groups a GPU and step", *(f"{groups:g} of {plan.step_groups}" for groups in split)]
    yield ["steps of an epoch", *(f"{plan.steps}" for _ in gpus)]


def table(plan: Plan, gpus: Sequence[int]) -> str:
    """Both tables, as Markdown."""
    lines = ["| what | arithmetic |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in counts(plan)]
    names = [f"{n} GPU{'s' if n > 1 else ''}" for n in gpus]
    lines += ["", "| | " + " | ".join(names) + " |", "|---" * (len(gpus) + 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in plans(plan, gpus)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    usual = Plan()
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    for name in ("prompts", "responses", "prompt", "response"):
        value = getattr(usual.data, name)
        parser.add_argument(f"--{name}", type=type(value), default=value)
    for name in ("references", "peak", "share", "step_groups", "micro_batch"):
        value = getattr(usual, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    words = vars(parser.parse_args())
    gpus = words.pop("gpus")
    data = Data(*(words.pop(name) for name in ("prompts", "responses", "prompt", "response")))
    print(table(Plan(data, **words), gpus))


if __name__ == "__main__":
    main()
