"""The records in a run's directory: what it was, what training took, what evaluations measured.

Each is a JSON file with a version. A file without one is of the first version. What was not said
stays unsaid when a record is written again, and keys that this mrpo does not know stay with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeAlias, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from mrpo_tools.config import Dataset, Reference, parse
from mrpo_tools.errors import UsageError
from mrpo_tools.files import finite, save_json

RECIPE = "recipe.yaml"
RUN = "run.json"
VERSION = 1
"""Of every record; a reader refuses larger ones."""

Setting: TypeAlias = bool | int | float | str | None
"""A hyper-parameter's value."""
Interval: TypeAlias = tuple[float | None, float | None]
"""The ends of a 95 % interval."""
ValueT = TypeVar("ValueT")
HARDLY_MOVED = 0.003
"""Nats a token: about what the noise of 16 bits comes to in responses of a hundred tokens."""
OLDER_NAMES = {"partition": "chosen"}
"""Of hyper-parameters, in records written when a recipe's word had another name in them."""


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        UsageError: it cannot be read, or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} is no JSON object")
    return values


class Part(BaseModel):
    """A part of a record, written with the keys that it was made with."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @model_serializer(mode="wrap")
    def _what_was_said(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        said = {*self.model_fields_set, "version"}
        return {key: value for key, value in dump(self).items() if key in said}


class CombinationReport(Part):
    """What a combination of references did with the data.

    Attributes:
        mean_weights: of each reference, over groups.
        clipped_fraction: share of the numbers of references 2..K that the trust region moved.
        mean_distance_from_reference_1_nats: of the virtual reference, over responses.
        max_distance_from_reference_1_nats: the largest of them.
    """

    mean_weights: list[float | None] = Field(default_factory=list)
    clipped_fraction: float | None = None
    mean_distance_from_reference_1_nats: float | None = None
    max_distance_from_reference_1_nats: float | None = None


class HeldOutScore(Part):
    """What a held-out scorer says of the pairs that the scores which count make.

    Attributes:
        scorer: `name@identity`.
        better: its mean score of the better responses.
        worse: of the worse ones.
        agreement: share of pairs that it orders alike, of those that it does not tie.
        pairs: so many of these.
    """

    scorer: str
    better: float | None = None
    worse: float | None = None
    agreement: float | None = None
    pairs: int = 0


class DataReport(CombinationReport):
    """What preparing the data for training found.

    Attributes:
        groups: that are trained on.
        dropped_responses: how many were left out, by reason.
        reference_accuracies: each reference's own, by kind of reward.
        skipped_groups: how many the objective cannot use, by reason.
        doubted_labels: groups whose scores say something else than their labels, or that have no
            score for some responses, by what it is; the labels win.
        prompts_in_two_splits: prompts that are trained on and stand in another split too.
        held_out_score: what a held-out scorer says of the groups; None without one.
    """

    groups: int | None = None
    dropped_responses: dict[str, int] = Field(default_factory=dict)
    reference_accuracies: dict[str, list[float | None]] = Field(default_factory=dict)
    skipped_groups: dict[str, int] = Field(default_factory=dict)
    doubted_labels: dict[str, int] = Field(default_factory=dict)
    prompts_in_two_splits: int | None = None
    held_out_score: HeldOutScore | None = None


class CombinationWords(Part):
    """How references were combined, resolved: the words of a recipe, and held-out accuracies."""

    combine: str | None = None
    weights: str | None = None
    trust_region: str | None = None
    epsilon_max: float | None = None
    fixed_weights: list[float] | None = None
    accuracies: list[float] | None = None
    weights_layout: str | None = None


class Histograms(Part):
    """How weights and distances are spread over groups and responses.

    Attributes:
        weights: for each reference, groups by weight in equal bins of [0, 1].
        distances: for each of references 2..K, responses by (r_ik − r_i1)/|r_i1| before clipping,
            in equal bins of [−1, 1], those beyond in the outer bins.
        mean_radius: of the trust region, relative; None without clipping.
        clipped: share of responses that are clipped, for references 2..K.
    """

    weights: list[list[int]]
    distances: list[list[int]]
    mean_radius: float | None
    clipped: list[float]


class Measurements(Part, Generic[ValueT]):
    """One value of each metric (docs/methods.md); None where no group can say.

    Attributes:
        reference_accuracies: for each kind of reward, one of each reference.
    """

    accuracies: ValueT | None = None
    margins: ValueT | None = None
    top1: ValueT | None = None
    accuracies_step0: ValueT | None = None
    margins_step0: ValueT | None = None
    kendall_tau: ValueT | None = None
    accuracies_logp: ValueT | None = None
    accuracies_logp_per_token: ValueT | None = None
    accuracies_longer: ValueT | None = None
    accuracies_logp_step0: ValueT | None = None
    accuracies_reference_1: ValueT | None = None
    reference_accuracies: dict[str, list[ValueT | None]] = Field(default_factory=dict)


class Record(Part):
    """A JSON file of a run.

    Attributes:
        version: of its format.
    """

    version: int = Field(default=VERSION, ge=1)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The record in a file.

        Raises:
            UsageError: it cannot be read, is no such record, or was written by a later mrpo.
        """
        values = read_object(path)
        version = values.get("version", VERSION)
        if isinstance(version, int) and version > VERSION:
            raise UsageError(
                f"{path} has version {version}; this mrpo reads up to {VERSION}",
                "read it with the mrpo that wrote it, or a later one",
            )
        return parse(cls, values, str(path))

    def as_json(self) -> dict[str, Any]:
        """The values that the file holds; a number that is not finite is None."""
        values = finite(self.model_dump(mode="json"))
        return {"version": values.pop("version"), **values}

    def write(self, path: Path) -> None:
        """Write the file in one step."""
        save_json(path, self.as_json())


FIXED = (
    "policy_identity",
    "references",
    "combination",
    "hyper",
    "behaviour",
    "score",
    "groups_hash",
)
"""Of a run's record: what may not change when it goes on, beside its recipe."""
FREE = (
    "batch_tokens", "gradient_checkpointing", "per_device_train_batch_size",
    "gradient_accumulation_steps",
)  # fmt: skip
"""Keys of its recipe that may change: they change memory, not the result, as long as a step is of
as many groups: the loss is a mean over these."""
HARDWARE = ("fsdp", "fsdp_config", "deepspeed")
"""Keys of `trainer` that say how a run is computed, and not what."""


def determining(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a recipe that determine the run."""
    words = {key: value for key, value in recipe.items() if key not in FREE}
    trainer = words.get("trainer")
    if isinstance(trainer, Mapping):
        words["trainer"] = {key: each for key, each in trainer.items() if key not in HARDWARE}
    return words


class RunRecord(Record):
    """`run.json`: with the recipe it says how to repeat the run.

    Attributes:
        policy: before training.
        policy_identity: its hash.
        references: `name@identity` of each, reference 1 first.
        models: where the references' models were.
        cache: the directory of the references' numbers.
        dataset: where the groups came from, pinned.
        groups_hash: of the groups that were trained on.
        behaviour: `name@identity` of the policy that samples were drawn from; None without any.
        score: `name@identity` of the scorer whose scores count; None for the data's own.
        objective: the row of the table of objectives.
        hyper: every hyper-parameter of the objective, resolved.
        combination: of the references, resolved.
        report: what preparing the data found.
        versions: of the libraries.
        split_hash: of all groups of the split, usable or not.
        data_hash: of all groups in the order of their ids, whatever their split; None where a
            limit takes the first ones of each split, which are others in each draw.
        created: when it began, as ISO 8601 has it, in UTC.
    """

    policy: Reference
    policy_identity: str | None = None
    references: list[str] = Field(default_factory=list)
    models: dict[str, Reference] = Field(default_factory=dict)
    cache: str | None = None
    dataset: Dataset | None = None
    groups_hash: str | None = None
    behaviour: str | None = None
    score: str | None = None
    objective: str | None = None
    hyper: dict[str, Setting] = Field(default_factory=dict)
    combination: CombinationWords = Field(default_factory=CombinationWords)
    report: DataReport = Field(default_factory=DataReport)
    versions: dict[str, str] = Field(default_factory=dict)
    split_hash: str | None = None
    data_hash: str | None = None
    created: str | None = None

    @field_validator("hyper")
    @classmethod
    def _as_recipes_name_them(cls, hyper: dict[str, Setting]) -> dict[str, Setting]:
        return {OLDER_NAMES.get(name, name): value for name, value in hyper.items()}


class Metrics(Record, DataReport):
    """`metrics.json`: what training took and where it ended; the last file of a run.

    Attributes:
        steps: of the optimizer.
        peak_memory_bytes: that the process held at most.
        step0_difference_nats_per_token: between the policy and its cached reference; None where
            no reference stands for it.
        gradient_checkpointing: whether activations were computed again.
        train_loss: the mean over all steps.
        train_seconds: of the steps alone, over all processes one after another.
        last_log: the last entry of the log with a loss.
        last_evaluation: the last entry of what was measured while training.
        total_seconds: of the command, loading counted.
        moved_nats_per_token: mean distance between the policy's log-probs and those of the
            untrained one, over some responses that it was trained on.
    """

    steps: int | None = None
    peak_memory_bytes: int | None = None
    step0_difference_nats_per_token: float | None = None
    gradient_checkpointing: bool | None = None
    train_loss: float | None = None
    train_seconds: float | None = None
    last_log: dict[str, int | float | None] = Field(default_factory=dict)
    last_evaluation: dict[str, int | float | None] = Field(default_factory=dict)
    total_seconds: float | None = None
    moved_nats_per_token: float | None = None

    @property
    def hardly_moved(self) -> str | None:
        """What to say of a policy that training left where it was; None of any other."""
        return _hardly_moved(self.moved_nats_per_token)


def _hardly_moved(moved: float | None) -> str | None:
    if moved is None or moved >= HARDLY_MOVED:
        return None
    return (
        f"the policy hardly moved: {moved:.2g} nats a token from the untrained one; "
        "more steps or a larger learning_rate move it"
    )


@dataclass(frozen=True)
class Estimate:
    """A measured value and its 95 % interval; None where there is none."""

    value: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> Interval | None:
        """Both ends; None without a value."""
        return None if self.value is None else (self.low, self.high)


class EvaluatedPart(Part):
    """Some metrics of one part of a split.

    Attributes:
        groups: that have a pair.
        intervals: 95 %, bootstrap over prompts, by metric.
    """

    groups: int = 0
    accuracies: float | None = None
    top1: float | None = None
    accuracies_reference_1: float | None = None
    accuracies_logp: float | None = None
    intervals: dict[str, Interval | None] = Field(default_factory=dict)

    def estimate(self, metric: str) -> Estimate | None:
        """A metric with its interval; None where it was not measured."""
        if metric not in self.model_fields_set:
            return None
        return _estimate(getattr(self, metric), self.intervals.get(metric))


class EvaluationRecord(Record, Measurements[float]):
    """`evaluation/<split>.json`: the metrics of one policy on one split.

    Attributes:
        intervals: 95 %, bootstrap over prompts.
        groups: that have a pair.
        groups_without_pairs: that have none.
        dropped_responses: how many were left out, by reason.
        combination: what it did with these groups.
        histograms: for pictures; None for fewer than two references.
        split: of the data.
        loss: of the run; None for a model.
        model: as the user named it; None for a run.
        references: `name@identity` of a run's, names of a model's, reference 1 first.
        precompute_seconds: that the log-probs of the data took, for each reference.
        groups_hash: of the groups.
        score: `name@identity` of the scorer whose scores said what is better; None for the data's
            own scores and labels.
        dataset: where they came from.
        prompts_trained_on: of those measured here, by the run; None where nobody knows.
        moved_nats_per_token: mean distance between the policy's log-probs and those of the
            untrained one; None where it has none.
        parts: of the data that its groups' names tell apart, as RewardBench's `subset` does.
    """

    intervals: Measurements[Interval] = Field(default_factory=Measurements[Interval])
    groups: int | None = None
    groups_without_pairs: int | None = None
    dropped_responses: dict[str, int] = Field(default_factory=dict)
    combination: CombinationReport = Field(default_factory=CombinationReport)
    histograms: Histograms | None = None
    split: str | None = None
    loss: str | None = None
    model: str | None = None
    references: list[str] = Field(default_factory=list)
    precompute_seconds: list[float | None] = Field(default_factory=list)
    groups_hash: str | None = None
    score: str | None = None
    dataset: Dataset | None = None
    prompts_trained_on: int | None = None
    moved_nats_per_token: float | None = None
    parts: dict[str, EvaluatedPart] = Field(default_factory=dict)

    def estimate(self, metric: str) -> Estimate | None:
        """A metric with its interval; None where it was not measured."""
        if metric not in self.model_fields_set:
            return None
        return _estimate(getattr(self, metric), getattr(self.intervals, metric))

    @property
    def untrained_is_tied(self) -> bool:
        """Whether the untrained policy is its own reference: every pair was tied before training,
        and a tie is no wrong answer."""
        return self.accuracies_step0 == 0 and self.margins_step0 == 0

    @property
    def hardly_moved(self) -> str | None:
        """What to say of a policy that training left where it was; None of any other, or a
        model."""
        return None if self.model is not None else _hardly_moved(self.moved_nats_per_token)

    def references_alone(self, kind: str = "summed") -> list[tuple[str, Estimate]]:
        """Each reference with the accuracy of its log-prob, reference 1 first.

        Args:
            kind: `summed`, `per_token` or `per_byte`.
        """
        values = self.reference_accuracies.get(kind, [])
        ends = self.intervals.reference_accuracies.get(kind) or [None] * len(values)
        return [
            (name, _estimate(value, interval))
            for name, value, interval in zip(self.references, values, ends, strict=False)
        ]


def _estimate(value: float | None, ends: Interval | None) -> Estimate:
    return Estimate(value, *(ends or (None, None)))
