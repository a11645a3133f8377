"""`GroupTrainer`: transformers' Trainer with the project's loss, collator and guards.

The engine (accelerate, schedules, checkpoints, callbacks) is the Trainer's. Ours is the loss: a
mean over the usable groups of a whole optimizer step, the same whatever the micro-batches and the
processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import signal
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from mrpo_tools.batching import Row, collate, plan_rows
from mrpo_tools.errors import NonFiniteError
from mrpo_tools.maths import metrics, objectives
from mrpo_tools.maths.shapes import masked_mean
from mrpo_tools.progress import Advance, bar, say
from mrpo_tools.scorer import ResponseScorer
from mrpo_tools.tokens import EncodedGroup

BAD_STEPS = 3


@dataclass(frozen=True)
class TrainingGroups(TorchDataset[int]):  # type: ignore[misc]
    """G groups ready for training: ids under the policy's tokenizer, and cached numbers.

    Attributes:
        group_ids: of each group, for seeds.
        encoded: prompt and responses as ids.
        reference_logps: [G, N], [G, N, K] for `multi_dpo`, or None.
        weights: [G, K].
        scores, chosen: [G, N] or None.
        mask: [G, N] responses that take part.
    """

    group_ids: Sequence[str]
    encoded: Sequence[EncodedGroup]
    reference_logps: Tensor | None
    weights: Tensor
    scores: Tensor | None
    chosen: Tensor | None
    mask: Tensor

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> int:
        return index

    def objective_batch(
        self, policy_logps: Tensor, index: Tensor, **extra: Any
    ) -> objectives.Batch:
        """The tensors of some groups as an objective takes them, on the policy's device."""
        device = policy_logps.device

        def rows(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[index.cpu()].to(device)

        several = self.reference_logps is not None and self.reference_logps.dim() == 3
        mask = self.mask[index.cpu()].to(device)
        return objectives.Batch(
            policy_logps=policy_logps,
            reference_logps=rows(self.reference_logps),
            lengths=self.lengths_of(index).to(device),
            scores=rows(self.scores),
            chosen=rows(self.chosen),
            mask=mask,
            weights=rows(self.weights) if several else None,
            **extra,
        )

    def lengths_of(self, index: Tensor) -> Tensor:
        """[B, N] response tokens under the policy's tokenizer; 0 beyond a group's responses."""
        groups = [self.encoded[int(i)] for i in index]
        lengths = torch.zeros(len(groups), self.mask.shape[1], dtype=torch.long)
        for row, group in enumerate(groups):
            for n, response in enumerate(group.responses):
                lengths[row, n] = len(response.ids)
        return lengths


def group_rows(groups: TrainingGroups, index: Sequence[int]) -> list[Row]:
    """Each group as a tree; response n of the batch's group b has the key b·N + n."""
    width = groups.mask.shape[1]
    rows = []
    for b, g in enumerate(index):
        encoded = groups.encoded[g]
        taking_part = [n for n in range(len(encoded.responses)) if groups.mask[g, n]]
        ids = [encoded.responses[n].ids for n in taking_part]
        rows.append(Row(encoded.prompt_ids, ids, [b * width + n for n in taking_part]))
    return [row for row in rows if row.keys]


class GroupCollator:
    """Indices of groups -> a token batch, and which groups are usable."""

    def __init__(self, groups: TrainingGroups, usable: Tensor, scorer: ResponseScorer) -> None:
        self.groups, self.usable, self.scorer = groups, usable, scorer

    def __call__(self, index: list[int]) -> dict[str, Any]:
        width = self.groups.mask.shape[1]
        rows = plan_rows(
            group_rows(self.groups, index),
            share=self.scorer.share_prompts,
            hidden_size=self.scorer.hidden_size,
        )
        places = torch.tensor(index)
        return {
            "tokens": dict(collate(rows, len(index) * width)),
            "index": places,
            "usable": self.usable[places],
        }


def group_seeds(group_ids: Sequence[str], seed: int, epoch: int) -> Tensor:
    """[B] int64, one for each group and epoch, whatever the batch."""
    return torch.tensor(
        [
            int.from_bytes(hashlib.sha256(f"{seed}:{epoch}:{key}".encode()).digest()[:7], "big")
            for key in group_ids
        ],
        dtype=torch.int64,
    )


class GroupTrainer(Trainer):  # type: ignore[misc]
    """Trains a `ResponseScorer` on groups.

    Args:
        scorer: the policy.
        groups: what to train on; unusable groups weigh nothing.
        objective: name of the table's row.
        hyper: its hyper-parameters.
        reference_names: reference 1 first, for the log.
        clipped: [G, N, K − 1] bool, which cached numbers the trust region moved, for the log.
        args: the Trainer's own.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        scorer: ResponseScorer,
        groups: TrainingGroups,
        objective: str,
        hyper: dict[str, Any],
        args: TrainingArguments,
        reference_names: Sequence[str] = (),
        clipped: Tensor | None = None,
        **trainer: Any,
    ) -> None:
        self.groups = groups
        self.objective: str = objective
        self.hyper = hyper
        self.reference_names, self.clipped = list(reference_names), clipped
        zeros = torch.zeros(groups.mask.shape, dtype=torch.float64)
        everything = groups.objective_batch(
            zeros, torch.arange(len(groups)), seeds=torch.zeros(len(groups), dtype=torch.int64)
        )
        usable = objectives.usable(objective, everything, **hyper)
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, float] = defaultdict(float)
        super().__init__(
            model=scorer,
            args=args,
            train_dataset=groups,
            data_collator=GroupCollator(groups, usable, scorer),
            **trainer,
        )
        self.model_accepts_loss_kwargs = True
        self.finite_loss = True
        self.add_callback(FiniteGuard(self))

    def _get_num_items_in_batch(
        self, batch_samples: list[Any], device: torch.device
    ) -> Tensor | None:
        """Usable groups of the whole optimizer step, over all micro-batches and processes."""
        if not batch_samples:
            return None
        count = torch.stack([batch["usable"].sum() for batch in batch_samples]).sum().to(device)
        if self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        return count

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Sum of the groups' losses over the usable groups of the optimizer step."""
        index = inputs["index"]
        logps = model(**inputs["tokens"]).view(len(index), -1)
        epoch = math.floor(self.state.epoch or 0)
        seeds = group_seeds([self.groups.group_ids[int(i)] for i in index], self.args.seed, epoch)
        batch = self.groups.objective_batch(logps, index, seeds=seeds.to(logps.device))
        losses = objectives.compute(self.objective, batch, **self.hyper)
        count = torch.as_tensor(
            inputs["usable"].sum() if num_items_in_batch is None else num_items_in_batch
        )
        loss = losses.sum() / count.clamp(min=1)
        if num_items_in_batch is not None and self.args.world_size > 1:
            loss = loss * self.args.world_size  # DDP averages what is a sum here
        if model.training:
            self._observe(batch, index)
        loss = loss.float()
        if model.training:
            self.finite_loss &= bool(loss.isfinite())
        return (loss, {"logps": logps}) if return_outputs else loss

    def _observe(self, batch: objectives.Batch, index: Tensor) -> None:
        """Add a micro-batch to the averages that the next log entry shows."""
        with torch.no_grad():
            rewards = objectives.rewards(self.objective, batch, **self.hyper)
            sides = objectives.sides(self.objective, batch, **self.hyper)
            judged = (batch.mask, batch.scores, batch.chosen)
            both = sides.positive.any(-1) & sides.negative.any(-1)
            logps = batch.policy_logps.detach()
            shown = {
                "rewards/chosen": masked_mean(rewards, sides.positive)[both],
                "rewards/rejected": masked_mean(rewards, sides.negative)[both],
                "rewards/accuracies": metrics.accuracies(rewards, *judged),
                "rewards/margins": metrics.margins(rewards, *judged),
                "logps/chosen": masked_mean(logps, sides.positive)[both],
                "logps/rejected": masked_mean(logps, sides.negative)[both],
            }
            place = index.cpu()
            for k, name in enumerate(self.reference_names):
                shown[f"references/{name}/weight"] = self.groups.weights[place, k]
            if self.clipped is not None and self.clipped.shape[-1]:
                shown["references/clipped_fraction"] = self.clipped[place].double()[
                    self.groups.mask[place]
                ]
        for name, values in shown.items():
            known = values[~values.isnan()]
            self._sums[name] += float(known.sum())
            self._counts[name] += known.numel()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's log entry with the averages since the last one, over all processes."""
        if "loss" in logs and self._counts:
            names = sorted(self._counts)
            pairs = torch.tensor(
                [[self._sums[name], self._counts[name]] for name in names], dtype=torch.float64
            )
            if self.args.world_size > 1:
                gathered = self.accelerator.gather(pairs.unsqueeze(0).to(self.args.device))
                pairs = gathered.sum(0).cpu()
            averages = {
                name: float(total / count)
                for name, (total, count) in zip(names, pairs, strict=True)
                if count
            }
            logs = {**logs, **averages}
            self._sums.clear()
            self._counts.clear()
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The adapter or the model inside the scorer, as `from_pretrained` reads it."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        if state_dict is not None:
            state_dict = {name.removeprefix("model."): one for name, one in state_dict.items()}
        inner = self.accelerator.unwrap_model(self.model).model
        inner.save_pretrained(folder, state_dict=state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        wrapped = model if model is not None else self.model
        super()._load_from_checkpoint(
            resume_from_checkpoint, self.accelerator.unwrap_model(wrapped).model
        )


class FiniteGuard(TrainerCallback):  # type: ignore[misc]
    """Keeps a step whose loss or gradient is not finite from moving the weights.

    Three such steps in a row stop the run.
    """

    def __init__(self, trainer: GroupTrainer) -> None:
        self.trainer, self.bad = trainer, 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        model: Any = self.trainer.model
        parameters = [p for p in model.parameters() if p.grad is not None]
        finite = torch.stack([p.grad.isfinite().all() for p in parameters]).all().float()
        finite = finite * self.trainer.finite_loss
        self.trainer.finite_loss = True
        if args.world_size > 1:
            finite = self.trainer.accelerator.gather(finite.reshape(1)).min()
        if bool(finite):
            self.bad = 0
            return
        self.bad += 1
        say(f"warning: step {state.global_step + 1} is not applied: its loss is not finite")
        for parameter in parameters:
            parameter.grad = None  # zeroed gradients would still move AdamW
        if self.bad >= BAD_STEPS:
            raise NonFiniteError(
                f"the loss or its gradient was not finite in {BAD_STEPS} steps in a row, the last "
                f"at step {state.global_step + 1}",
                "lower learning_rate or raise beta, and look at the run's log for where it began",
            )


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """On SIGTERM: finish the step, save a checkpoint, stop."""

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> StopOnSignal:
        self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_: object) -> None:
        self.received = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if self.received:
            control.should_save = True
            control.should_training_stop = True
        return control


class ProgressLog(TrainerCallback):  # type: ignore[misc]
    """A bar on a terminal; elsewhere one line on stderr for each log entry."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._advance: Advance | None = None
        self._last = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self._advance = self._stack.enter_context(bar("training", state.max_steps, "steps"))
            self._last = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._advance:
            self._advance(state.global_step - self._last)
            self._last = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not self._advance or not logs or "loss" not in logs:
            return
        shown = {
            "loss": logs["loss"],
            "accuracy": logs.get("rewards/accuracies"),
            "margin": logs.get("rewards/margins"),
        }
        note = "  ".join(f"{name} {one:.3f}" for name, one in shown.items() if one is not None)
        self._advance(0, note=note)
        if not sys.stderr.isatty():
            say(f"step {state.global_step}/{state.max_steps}  {note}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._stack.close()
