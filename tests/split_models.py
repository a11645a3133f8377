"""Tiny models of many families, split between two imagined devices, against the same models whole.

    python tests/split_models.py OUTPUT [--world DIRECTORY] [FAMILY ...]

writes a line of JSON for each family, for each planted fault, and for each way of loading a
reference of the directory: models `llama` and `qwen`, a LoRA `adapter` of the first, `groups.jsonl`
to score. Without families, all of them.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import dispatch_model
from families import CPU, FAMILIES, OTHERS, SAMPLES, tiny_model
from imagined_devices import FAR, devices, put
from independent import response_logp
from peft import LoraConfig, get_peft_model

from mrpo_tools.cache import Cache
from mrpo_tools.config import Reference
from mrpo_tools.maths.logprobs import token_logps
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.references.loading import load_model, quiet_libraries
from mrpo_tools.references.resolved import resolve
from mrpo_tools.scorer.across import blocks_of
from mrpo_tools.scorer.choose import load_engine
from mrpo_tools.scorer.head import wide_linear
from mrpo_tools.scorer.memory import sizes_of
from mrpo_tools.scorer.room import need_of, place
from mrpo_tools.scorer.scorer import PIECES, ROUTES, ResponseScorer, response_logps
from mrpo_tools.scorer.self_check import plain_logps, self_check
from mrpo_tools.sources import load_groups

Change = Callable[[Any], None]
LENGTHS = [len(response) for tree in OTHERS for response in tree.responses]


def split(model: Any, first: int | None = None) -> Any:
    """The model with its first blocks on one device and the others on the next, by accelerate.

    Args:
        model: on the CPU.
        first: how many; from the end where it is below 0; None is half.
    """
    blocks = blocks_of(model, sizes_of(ResponseScorer(copy.deepcopy(model))))
    first = range(len(blocks))[len(blocks) // 2 if first is None else first]
    places = {name: FAR[n >= first] for n, block in enumerate(blocks) for name in block.names}
    put(model, places)
    names = {name: str(device) for name, device in places.items()}
    dispatch_model(model, names, skip_keys=model._skip_keys_device_placement)
    model.hf_device_map = names
    return model


def adapted(model: Any) -> Any:
    """With a LoRA adapter that changes numbers, on all that can have one."""
    torch.manual_seed(7)
    settings = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(model, settings).eval()


def adapted_after(model: Any) -> Any:
    """Split first and then given the adapter of `adapted`, as a reference is loaded."""
    weights = {
        name: weight.clone() for name, weight in adapted(copy.deepcopy(model)).named_parameters()
        if "lora_" in name
    }  # fmt: skip
    split(model)
    there = adapted(model)
    for name, weight in there.named_parameters():
        if "lora_" in name:
            weight.detach().copy_(weights[name])
    return there


@torch.no_grad()
def by_each_route(scorer: ResponseScorer, device: torch.device) -> dict[str, Any]:
    """Log-probs of `OTHERS` by every route, in nats; or why there are none."""
    found: dict[str, Any] = {}
    for route in (*ROUTES, PIECES):
        scorer.take(route)
        try:
            logps = {
                key: logp
                for batch in scorer.batches(OTHERS, 10_000)
                for key, logp in zip(
                    [key for row in batch for key in row.keys],
                    response_logps(scorer, batch, device), strict=True,
                )
            }  # fmt: skip
        except Exception as error:
            found[route.name] = f"{type(error).__name__}: {error}"[:200]
        else:
            found[route.name] = [logps[key] for key in sorted(logps)]
    return found


def compared(
    name: str, *, both: Change = lambda model: model, after: Change = lambda model: model
) -> dict[str, Any]:
    """A family whole and split.

    Args:
        name: of the family.
        both: changes the whole model.
        after: changes the split one as much.
    """
    whole = both(tiny_model(name))
    truth = [
        response_logp(copy.deepcopy(whole), tree.prompt, response)
        for tree in OTHERS
        for response in tree.responses
    ]
    plain = ResponseScorer(whole)
    expected = by_each_route(plain, CPU)
    route = self_check(plain, SAMPLES["several"], CPU).route.name
    with devices():
        apart = ResponseScorer(after(tiny_model(name)))
        got = by_each_route(apart, FAR[0])
        checked = self_check(apart, SAMPLES["several"], FAR[0])
        alone = [logp for row in plain_logps(apart, OTHERS, FAR[0]) for logp in row]
    return {
        "devices": list(map(str, apart.devices)),
        "routes": {key: _apart(got[key], value) for key, value in expected.items()},
        "failed": {key: value for key, value in got.items() if isinstance(value, str)},
        "alone": _apart(alone, list(map(float, truth))),
        "route": checked.route.name,
        "expected": route,
        "refused": dict(checked.refused),
    }


def _apart(some: Any, others: Any) -> float | str:
    """The largest difference, in nats a token; `both` where neither has numbers."""
    if isinstance(some, str) or isinstance(others, str):
        return "both" if isinstance(some, str) and isinstance(others, str) else f"{some} {others}"
    pairs = zip(some, others, LENGTHS, strict=True)
    return max(abs(one - other) / length for one, other, length in pairs)


# Faults


class SourcesStay(ResponseScorer):
    """Indices of states are left where the ids are."""

    def _token_logps(self, batch: Any) -> torch.Tensor:
        states, head = self._states(batch)
        lines = states.flatten(0, 1).index_select(0, batch["sources"])
        return token_logps(lines, batch["targets"], head)


class TargetsStay(ResponseScorer):
    """Targets are left where the ids are, and the head is elsewhere."""

    def _token_logps(self, batch: Any) -> torch.Tensor:
        states, head = self._states(batch)
        lines = states.flatten(0, 1).index_select(0, batch["sources"].to(states.device))
        logits = head(lines)
        return logits.log_softmax(-1).gather(-1, batch["targets"].unsqueeze(-1)).squeeze(-1)


class OneMemory(dict):
    """What attention remembers of a forest, for all devices alike."""

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(key[:-1], default)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key[:-1], value)


class Remembers(ResponseScorer):
    """With that memory."""

    def collate(self, rows: Any) -> Any:
        batch = super().collate(rows)
        if batch["forest"] is not None:
            batch["forest"].__dict__["memory"] = OneMemory()
        return batch


class HeadAbove(ResponseScorer):
    """The head's function stands above accelerate's hook in place of below it."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        head = self.causal_lm.get_output_embeddings()
        head.__dict__["forward"] = partial(wide_linear, head)


FAULTS: dict[str, tuple[type[ResponseScorer], str, int | None]] = {
    "sources stay": (SourcesStay, "llama", None),
    "targets stay": (TargetsStay, "llama", None),
    "one memory of masks": (Remembers, "mistral", None),
    "head above its hook": (HeadAbove, "llama", -1),
}
"""What is wrong, in which family, with how many blocks on the first device."""


def planted() -> Iterator[tuple[str, dict[str, Any]]]:
    """What each fault makes of the routes; without it the same model is right."""
    for name, (kind, family, first) in FAULTS.items():
        with devices():
            healthy = by_each_route(ResponseScorer(split(tiny_model(family), first)), FAR[0])
            faulty = kind(split(tiny_model(family), first))
            yield (
                name,
                {
                    "healthy": [key for key, value in healthy.items() if isinstance(value, str)],
                    "failed": {
                        key: value
                        for key, value in by_each_route(faulty, FAR[0]).items()
                        if isinstance(value, str)
                    },
                },
            )


# References, loaded as phase 1 loads them


def machine(weights: int, working: int, *shares: float) -> Callable[[torch.device], int]:
    """Free bytes of cards that hold so many times the weights beside a batch."""
    return lambda device: int((shares[device.index or 0] * weights + working) / 0.95) + 1


def spread(
    world: Path, shares: Sequence[float] = (0.7, 0.7), model: str = "llama", **words: Any
) -> tuple[Any, Any]:
    """A reference on cards that hold such shares of it, and the function that loads it."""
    resolved = resolve(model, Reference(model=str(world / model), dtype="float32", **words))
    need = need_of(resolved, "float32", CPU)
    free = machine(need.weights, need.working[-1][1], *shares)

    def load(resolved: Any, products: str, _device: Any) -> Any:
        placed = place(resolved, products, CPU, cards=FAR[: len(shares)], free=free, processes=1)
        return load_engine(resolved, products, FAR[0], placed)

    return resolved, load


def loaded(world: Path, *places: Any, **words: Any) -> dict[str, Any]:
    """Its log-probs of some rows, against its model loaded whole."""
    resolved, load = spread(world, *places, **words)
    whole = load_model(resolved.files, resolved.reference, "float32", CPU)
    truth = [float(response_logp(whole, r.prompt, ids)) for r in OTHERS for ids in r.responses]
    with devices():
        engine = load(resolved, "float32", FAR[0])
        checked = engine.self_check(SAMPLES["several"])
        logps = {
            key: logp
            for batch, numbers in engine.computed(engine.batches(OTHERS, None))
            for key, logp in zip([key for row in batch for key in row.keys], numbers, strict=True)
        }
        alone = [logp for row in engine.plain_logps(OTHERS) for logp in row]
        held = {str(weight.device) for weight in engine.scorer.parameters()}
    return {
        "where": engine.where,
        "device": str(engine.device),
        "held": sorted(held),
        "batch tokens": engine.batch_tokens,
        "route": checked.route.name,
        "refused": dict(checked.refused),
        "worst": _apart([logps[key] for key in sorted(logps)], truth),
        "alone": _apart(alone, truth),
    }


def limited(world: Path, limits: dict[int | str, float], shares: Sequence[float]) -> dict[str, Any]:
    """`loaded` where such shares of the weights may lie."""
    resolved, _ = spread(world)
    weights = need_of(resolved, "float32", CPU).weights
    said = {where: int(share * weights) for where, share in limits.items()}
    return loaded(world, shares, device_map="auto", max_memory=said)


def precomputed(world: Path) -> dict[str, Any]:
    """Phase 1, whole; its cache is beside the groups."""
    resolved, load = spread(world)
    cache, groups = Cache(world / "cache"), load_groups(world / "groups.jsonl").groups
    with devices():
        [summary] = precompute(
            {"llama": resolved.reference}, groups, cache, "some", load=load, part_rows=16
        )
    return {"scored": summary.computed["ok"], "short": summary.store.short}


WAYS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "spread": loaded,
    "tied": lambda world: loaded(world, model="qwen"),
    "adapter": lambda world: loaded(world, adapter=str(world / "adapter")),
    "second card": lambda world: loaded(world, (0.0, 1.1)),
    "limits": lambda world: limited(world, {0: 0.3, 1: 1.0}, (2, 2)),
    "offloaded": lambda world: limited(world, {0: 0.6, "cpu": 1.0}, (2,)),
    "precomputed": precomputed,
}
"""Ways of loading a reference."""


def main(output: Path, families: Sequence[str], world: Path | None) -> None:
    """Write what is found."""
    quiet_libraries()
    warnings.filterwarnings("ignore")
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # imagined devices are those of a thread
    with output.open("w") as file:

        def write(name: str, found: Callable[[], dict[str, Any]]) -> None:
            try:
                row = found()
            except Exception as error:
                row = {"error": f"{type(error).__name__}: {error}"[:300]}
            file.write(json.dumps({"name": name, **row}) + "\n")
            file.flush()

        for name in families or FAMILIES:
            write(name, partial(compared, name, after=split))
        write("llama, adapter", partial(compared, "llama", both=adapted, after=adapted_after))
        for name, row in planted():
            write(f"fault: {name}", lambda row=row: row)
        for name, way in WAYS.items() if world else ():
            write(f"reference: {name}", partial(way, world))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--world", type=Path)
    given = parser.parse_args()
    main(given.output, given.families, given.world)
