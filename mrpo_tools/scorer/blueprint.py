"""A causal LM by its configuration alone: what a dry run knows of it, and makes of it.

No weights are read. A model of the configuration is made with as few layers as show every kind of
layer that it has; what many layers do is reckoned from what one more of each kind does.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from mrpo_tools.config import Reference
from mrpo_tools.references.loading import load_config, quiet_libraries
from mrpo_tools.references.model_files import ModelFiles

if TYPE_CHECKING:
    from mrpo_tools.scorer.scorer import ResponseScorer


SAMPLED = 2
"""Layers of each kind that a shallow model has."""


@dataclass(frozen=True)
class Blueprint:
    """What a scorer would be made of.

    Attributes:
        config: of the model, in transformers' own class.
        dtype: of its weights.
        device: where it would be.
        scorer: makes the scorer of a bare model; here adapters are added.
        attention: the attention function that is forced; None leaves the model's own.
        trust_remote_code: whether the model's own code may run.
    """

    config: Any
    dtype: torch.dtype
    device: torch.device
    scorer: Callable[[Any], ResponseScorer]
    attention: str | None = None
    trust_remote_code: bool = False

    @property
    def text(self) -> Any:
        """The part of the configuration that describes the decoder."""
        return self.config.get_text_config()

    @property
    def layers(self) -> int:
        """Layers of the decoder."""
        return int(self.text.num_hidden_layers)

    @property
    def kinds(self) -> list[Hashable]:
        """What the configuration says of each layer, and of no other: equal ones are alike."""
        told = [values for _, values in _by_layer(self.text)]
        return [tuple(map(str, layer)) for layer in zip(*told, strict=True)] or [()] * self.layers

    def sample(self, count: int = SAMPLED) -> list[int]:
        """The first layers of each kind, so many of each: what the first one of a model finds in
        memory, the later ones do not."""
        places = {kind: self._of_kind(kind)[:count] for kind in self.kinds}
        return sorted(place for kind in places.values() for place in kind)

    def _of_kind(self, kind: Hashable) -> list[int]:
        return [place for place, other in enumerate(self.kinds) if other == kind]

    def of_layers(self, places: Sequence[int]) -> Blueprint:
        """The same model with these of its layers only."""
        config = copy.deepcopy(self.config)
        text = config.get_text_config()
        lists = _by_layer(text)
        text.num_hidden_layers = len(places)
        for name, values in lists:
            setattr(text, name, [values[place] for place in places])
        return replace(self, config=config)

    def made(self, device: torch.device) -> ResponseScorer:
        """The scorer, with random weights; on the device `meta` they have no storage."""
        from transformers import AutoModelForCausalLM

        quiet_libraries()
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(
                self.config,
                dtype=self.dtype,
                attn_implementation=self.attention,
                trust_remote_code=self.trust_remote_code,
            )
            return self.scorer(model.eval())

    def at_full_depth(self, measure: Callable[[Blueprint], Sequence[float]]) -> list[float]:
        """What a measure that grows evenly with the layers of each kind is for all of them.

        Args:
            measure: of a model with few layers; asked once for two layers of each kind, then with
                one more of a kind for each kind that has more.
        """
        sample = self.sample()
        base = measure(self.of_layers(sample))
        total = list(base)
        for kind, count in Counter(self.kinds).items():
            if count > SAMPLED:
                more = measure(self.of_layers(sorted([*sample, self._of_kind(kind)[SAMPLED]])))
                for place, (few, many) in enumerate(zip(base, more, strict=True)):
                    total[place] += (count - SAMPLED) * (many - few)
        return total


def blueprint_of(
    files: ModelFiles,
    reference: Reference,
    dtype: str,
    device: torch.device,
    scorer: Callable[[Any], ResponseScorer],
) -> Blueprint:
    """The blueprint of a reference's files; reads `config.json` and the headers of the weights."""
    config = load_config(files.model, trusted=reference.trust_remote_code)
    return Blueprint(
        config=config,
        dtype=getattr(torch, dtype),
        device=device,
        scorer=scorer,
        attention=reference.attention if reference.attention in ("sdpa", "eager") else None,
        trust_remote_code=reference.trust_remote_code,
    )


def _by_layer(text: Any) -> list[tuple[str, list[Any]]]:
    """The lists of a configuration that have an entry for each layer."""
    return [
        (name, list(values))
        for name, values in vars(text).items()
        if isinstance(values, (list, tuple)) and len(values) == text.num_hidden_layers
    ]
