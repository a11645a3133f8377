"""`GroupTrainer`: transformers' Trainer with the project's loss, collator and guards.

The engine (accelerate, schedules, checkpoints, callbacks) is the Trainer's. Ours is the loss: a
mean over the usable groups of a whole optimizer step, the same whatever the micro-batches and the
processes. (Over several processes accelerate fills the last batches of an epoch with groups of its
beginning; they then count in that step too.)
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from mrpo_tools.maths import metrics, objectives
from mrpo_tools.maths.shapes import masked_mean
from mrpo_tools.scorer import ResponseScorer
from mrpo_tools.training.callbacks import FiniteGuard
from mrpo_tools.training.groups import GroupCollator, TrainingGroups, group_seeds


class GroupTrainer(Trainer):  # type: ignore[misc]
    """Trains a `ResponseScorer` on groups.

    Args:
        scorer: the policy.
        groups: what to train on; unusable groups weigh nothing.
        objective: name of the table's row.
        hyper: its hyper-parameters.
        reference_names: reference 1 first, for the log.
        clipped: [G, N, K − 1] bool, which cached numbers the trust region moved, for the log.
        batch_tokens: tokens of one pass through the model; a micro-batch may take several.
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
        batch_tokens: int | None = None,
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
            data_collator=GroupCollator(groups, usable, scorer, batch_tokens),
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

    def restore_finished(self, checkpoint: str) -> bool:
        """Load a checkpoint that has no steps left to train; False when it has."""
        state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        if state.global_step < state.max_steps:
            return False
        self._load_from_checkpoint(checkpoint)
        self.state = state
        return True

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        wrapped = model if model is not None else self.model
        super()._load_from_checkpoint(
            resume_from_checkpoint, self.accelerator.unwrap_model(wrapped).model
        )
