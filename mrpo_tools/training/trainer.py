"""`GroupTrainer`: transformers' Trainer with the project's loss, collator and guards.

The engine (accelerate, schedules, checkpoints, callbacks) is the Trainer's. Ours is the loss: a
mean over the usable groups of a whole optimizer step, the same whatever the micro-batches and the
processes. (Over several processes accelerate fills the last batches of an epoch with groups of its
beginning; they then count in that step too.)
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from mrpo_tools.errors import MrpoError, UsageError, did_you_mean
from mrpo_tools.progress import say_once
from mrpo_tools.references.model_files import first_line
from mrpo_tools.scorer.scorer import ResponseScorer, response_logps
from mrpo_tools.scorer.trees import TokenBatch
from mrpo_tools.training.callbacks import Clock, FiniteGuard, StopOnSignal
from mrpo_tools.training.figures import Averages, figures
from mrpo_tools.training.groups import GroupCollator, TrainingGroups, group_seeds
from mrpo_tools.training.together import missing_passes
from mrpo_tools.training.whole import load_states, load_weights, save_states, whole_weights
from mrpo_tools.training.wrapping import give_back, is_sharded


class GroupTrainer(Trainer):
    """Trains a `ResponseScorer` on groups.

    Args:
        scorer: the policy.
        groups: what to train on; unusable groups weigh nothing.
        args: the Trainer's own.
        held_out: groups that are measured while training, if any are.
        batch_tokens: tokens of one pass through the model; a micro-batch may take several.
        stop: on a signal it ends training, and what is being measured.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        scorer: ResponseScorer,
        groups: TrainingGroups,
        args: TrainingArguments,
        held_out: TrainingGroups | None = None,
        batch_tokens: int | None = None,
        stop: StopOnSignal | None = None,
        **trainer: Any,
    ) -> None:
        self.groups, self.held_out = groups, held_out
        self.batch_tokens, self.stop = batch_tokens, stop
        self._averages = Averages()
        self.clock, self._guard = Clock(), FiniteGuard()
        super().__init__(
            model=scorer,
            args=args,
            train_dataset=groups,
            eval_dataset=held_out,
            data_collator=GroupCollator(groups, scorer, batch_tokens),
            **trainer,
        )
        self.model_accepts_loss_kwargs = True
        self.add_callback(self.clock)
        if stop is not None:
            self.add_callback(stop)
        self.add_callback(self._guard)

    @property
    def scorer(self) -> ResponseScorer:
        """The policy, without what DDP or DeepSpeed put around it."""
        inner: ResponseScorer = self.accelerator.unwrap_model(self.model)
        return inner

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
        return_outputs: bool = False,  # noqa: FBT001, FBT002  the Trainer's own signature
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Sum of the groups' losses over the usable groups of the optimizer step."""
        index = inputs["index"].tolist()
        empty = self._empty_passes(len(inputs["tokens"]["batches"]))
        logps = model(**inputs["tokens"], empty=empty).view(len(index), -1)
        epoch = math.floor(self.state.epoch or 0)
        seeds = group_seeds([self.groups.group_ids[g] for g in index], self.args.seed, epoch)
        applied = self.groups.objective(index, logps, seeds)
        count = torch.as_tensor(
            inputs["usable"].sum() if num_items_in_batch is None else num_items_in_batch
        ).to(logps.device)
        loss = applied.losses.sum() / count.clamp(min=1)
        if num_items_in_batch is not None and self.args.world_size > 1:
            loss = loss * self.args.world_size  # they average what is a sum here
        loss = loss.float().to(self.args.device)  # the sums of some devices are on the CPU
        if model.training:
            with torch.no_grad():
                self._averages.add(figures(self.groups, applied, index))
            self._guard.note(loss)
        return (loss, {"logps": logps}) if return_outputs else loss

    def _empty_passes(self, count: int) -> list[TokenBatch]:
        """As many batches that count for nothing as another process has more than these."""
        missing = missing_passes(count, self.args.device)
        return [self.scorer.empty_batch(self.args.device)] * missing

    def evaluate(
        self,
        eval_dataset: Any = None,  # noqa: ARG002  the Trainer's own signature
        ignore_keys: list[str] | None = None,  # noqa: ARG002
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Loss and figures of the held-out groups under the policy as it is, logged as `eval_…`."""
        groups, averages = self.held_out, Averages()
        if groups is None:
            raise ValueError("no groups are held out")
        with self.clock.paused():
            mine = range(self.args.process_index, len(groups), self.args.world_size)
            averages.add(self._measure(groups, list(mine)))
        if self._is_stopped():
            return {}
        means = averages.take(self)
        logs = {f"{metric_key_prefix}_{name}": mean for name, mean in means.items()}
        self._check_best(logs)
        self.log(logs)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        return logs

    def _check_best(self, logs: dict[str, float]) -> None:
        """Refuse a name for the best that nothing measured has, before the first step."""
        wanted = self.args.metric_for_best_model
        if wanted and wanted not in logs and f"eval_{wanted}" not in logs:
            names = [name.removeprefix("eval_") for name in logs]
            raise UsageError(
                f"trainer.metric_for_best_model: {wanted!r} is not measured; there are: "
                f"{', '.join(names)}",
                did_you_mean(wanted, names),
            )

    def _is_stopped(self) -> bool:
        """Whether a signal ends what is measured. The last measurement, and those that several
        processes make together, go on to their end."""
        signalled = self.stop is not None and self.stop.received and self.args.world_size == 1
        return signalled and self.state.global_step < self.state.max_steps

    def forget_closing_entry(self) -> None:
        """Drop the Trainer's last log entry: its means are of this process alone, with what was
        measured in its seconds; `metrics.json` has those of the run."""
        entries = [entry for entry in self.state.log_history if "train_runtime" not in entry]
        self.state.log_history = entries

    def _measure(self, groups: TrainingGroups, index: list[int]) -> dict[str, Tensor]:
        """Figures of some groups, and the losses of those that are usable."""
        scorer = self.scorer
        training = scorer.training
        scorer.eval()
        logps = torch.zeros(len(index) * groups.width, dtype=torch.float64)
        planned = scorer.batches(groups.trees(index), self.batch_tokens)
        empty = self._empty_passes(len(planned))  # told before the first pass
        for rows in planned:
            if self._is_stopped():
                break
            keys = [key for row in rows for key in row.keys]
            values = response_logps(scorer, rows, self.args.device)
            logps[keys] = torch.tensor(values, dtype=logps.dtype)
            self.control = self.callback_handler.on_prediction_step(
                self.args, self.state, self.control
            )
        with torch.no_grad():
            for batch in empty:
                scorer.token_logps(batch)
        scorer.train(training)
        seeds = group_seeds([groups.group_ids[g] for g in index], self.args.seed, 0)
        applied = groups.objective(index, logps.view(len(index), groups.width), seeds)
        return {"loss": applied.losses[applied.usable], **figures(groups, applied, index)}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's log entry with the averages since the last one, over all processes."""
        if "loss" in logs:
            logs = {**logs, **self._averages.take(self)}
        super().log(logs, start_time)

    def save_model(
        self,
        output_dir: str | None = None,
        _internal_call: bool = False,  # noqa: FBT001, FBT002  the Trainer's own signature
    ) -> None:
        """See `_save`; of a policy that is shared out, all processes make the whole together."""
        if not is_sharded(self.scorer):
            super().save_model(output_dir, _internal_call)
            return
        give_back(self.scorer)
        state = whole_weights(self.scorer)
        if self.args.should_save:
            self._save(output_dir, state)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The adapter or the model inside the scorer, as `from_pretrained` reads it."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        if state_dict is not None:
            state_dict = {
                name.removeprefix("model."): tensor for name, tensor in state_dict.items()
            }
        inner = self.scorer.model
        inner.save_pretrained(folder, state_dict=state_dict)
        mode = next(folder.glob("*config.json")).stat().st_mode
        for weights in folder.glob("*.safetensors"):  # made for their owner alone
            weights.chmod(mode)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def restore_finished(self, checkpoint: str) -> bool:
        """Load a checkpoint that has no steps left to train; False when it has."""
        state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        if state.global_step < state.max_steps:
            return False
        self._load_from_checkpoint(checkpoint)
        self.clock.restore(state)
        self.state = state
        if self.args.load_best_model_at_end:
            self._load_best_model()
        return True

    def _load_best_model(self) -> None:
        """The checkpoint that measured best, which lies beside the others."""
        best = self.state.best_model_checkpoint
        if best is not None:
            self._load_from_checkpoint(str(Path(str(self.args.output_dir), Path(best).name)))

    def init_hf_repo(self, *arguments: Any, **words: Any) -> None:
        """Make the repository before the first step, so that a hub that refuses is told first."""
        try:
            super().init_hf_repo(*arguments, **words)
        except Exception as error:  # the hub client's errors share no useful base
            raise UsageError(
                f"trainer.push_to_hub: the hub gives no repository: {first_line(error)}",
                "`hf auth login`, or HF_TOKEN in the environment; hub_model_id names it",
            ) from None

    def push_run(self) -> None:
        """The finished run to the hub, without its checkpoints."""
        try:
            where = self.push_to_hub(commit_message="mrpo train")
        except Exception as error:  # as above
            raise MrpoError(
                f"the run is finished, but the hub does not take it: {first_line(error)}",
                f"hf upload {self.hub_model_id} {self.args.output_dir}",
            ) from None
        if where is not None:
            say_once(f"pushed to {where}")

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nothing: the run has a card of its own."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if is_sharded(self.scorer):
            save_states(Path(output_dir), self.optimizer, self.lr_scheduler)
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and is_sharded(self.scorer):
            load_states(Path(checkpoint), self.optimizer, self.lr_scheduler)
        else:
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_from_checkpoint(
        self,
        resume_from_checkpoint: str,
        model: Any = None,  # noqa: ARG002
    ) -> None:
        give_back(self.scorer)
        load_weights(self.scorer.model, Path(resume_from_checkpoint))
