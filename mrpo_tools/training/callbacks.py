"""What happens beside the steps: bad gradients, signals, seals of checkpoints, progress."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState, PrinterCallback

from mrpo_tools.errors import NonFiniteError
from mrpo_tools.progress import Advance, bar, say, say_once
from mrpo_tools.references.devices import wait_for_everyone
from mrpo_tools.runs.checkpoints import PREFIX, keep, seal
from mrpo_tools.training.together import any_process
from mrpo_tools.training.whole import own_part

BAD_STEPS = 3


class FiniteGuard(TrainerCallback):
    """Keeps a step whose loss or gradient is not finite from moving the weights.

    Three such steps in a row stop the run.
    """

    def __init__(self) -> None:
        self._finite_losses, self._bad_steps = True, 0

    def note(self, loss: torch.Tensor) -> None:
        """Remember whether a micro-batch's loss is finite."""
        self._finite_losses &= bool(loss.isfinite())

    def on_pre_optimizer_step(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Drop the gradients where they, or a loss, are not finite in some process."""
        parameters = [p for p in model.parameters() if p.grad is not None]
        if parameters:
            finite = torch.stack([own_part(p.grad).isfinite().all() for p in parameters]).all()
        else:  # DeepSpeed keeps them; it has taken the step, or left it out for their norm
            finite = torch.tensor(not optimizer.step_was_skipped, device=args.device)
        finite = finite & self._finite_losses
        self._finite_losses = True
        if not any_process(~finite):
            self._bad_steps = 0
            return
        self._bad_steps += 1
        say_once(f"warning: step {state.global_step + 1} is not applied: its loss is not finite")
        for parameter in parameters:
            parameter.grad = None  # zeroed gradients would still move AdamW
        if self._bad_steps >= BAD_STEPS:
            raise NonFiniteError(
                f"the loss or its gradient was not finite in {BAD_STEPS} steps in a row, the last "
                f"at step {state.global_step + 1}",
                "lower learning_rate or raise beta, and look at the run's log for where it began",
            )


class Clock(TrainerCallback, ExportableState):
    """Seconds spent on the steps that a run is made of, in all its processes one after another.

    Checkpoints carry it. Evaluation between the steps does not count.
    """

    def __init__(self) -> None:
        self._before, self._since = 0.0, None  # type: float, float | None

    @property
    def seconds(self) -> float:
        """Until now."""
        return self._before + (0.0 if self._since is None else time.monotonic() - self._since)

    def _stop(self) -> None:
        self._before, self._since = self.seconds, None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """While the block runs, the clock stands."""
        ran = self._since is not None
        self._stop()
        yield
        self._since = time.monotonic() if ran else None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {"seconds": self.seconds}}

    def restore(self, state: Any) -> None:
        """Begin where a checkpoint's clock stood."""
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        self._before = saved["attributes"]["seconds"]

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock where the checkpoint's stood."""
        self.restore(state)
        self._since = time.monotonic()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop the clock."""
        self._stop()


class StepSize(TrainerCallback, ExportableState):
    """Keeps in each checkpoint how many groups a step is of."""

    def __init__(self, groups: int) -> None:
        self.groups = groups

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {"groups": self.groups}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take part in the checkpoints of a run that began without it."""
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())


class StopOnSignal(TrainerCallback):
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
        """Ask for a checkpoint and the end, if a signal came to any process."""
        self.received = any_process(torch.tensor(self.received, device=args.device))
        if state.global_step >= state.max_steps:
            control.should_log = True  # the last figures, whatever logging_steps
        if self.received:
            control.should_save = True
            control.should_training_stop = True
            if state.global_step < state.max_steps:  # the checkpoint comes first
                control.should_evaluate = False
        if control.should_save:
            control.should_log = True  # a resumed run logs on from here, as if it had not stopped
        return control


class StopWithoutGain(EarlyStoppingCallback):
    """Stops a run whose measurements get no better; its patience is part of a checkpoint."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin with the patience that a checkpoint had left."""
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        for name, value in saved["attributes"].items():
            setattr(self, name, value)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any
    ) -> None:
        """Count a measurement without gain; the one before the first step is none."""
        if state.global_step:
            count: Any = super().on_evaluate  # transformers does not type it
            count(args, state, control, metrics)


class SealCheckpoints(TrainerCallback):
    """Begins each checkpoint in an empty directory, seals it, and removes old ones after that.

    Args:
        count: so many are kept; None for all.
    """

    def __init__(self, count: int | None) -> None:
        self.count = count

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Clear the place of a checkpoint that was passed over."""
        if control.should_save:
            if state.is_world_process_zero:
                shutil.rmtree(_checkpoint(args, state), ignore_errors=True)
            wait_for_everyone()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Seal it when all processes have written their files; none goes on before that."""
        wait_for_everyone()
        if state.is_world_process_zero:
            checkpoint = _checkpoint(args, state)
            seal(checkpoint)
            best = Path(state.best_model_checkpoint).name if state.best_model_checkpoint else None
            keep(checkpoint.parent, checkpoint, self.count, best)
        wait_for_everyone()  # a launcher ends all processes when the first one has ended


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"{PREFIX}{state.global_step}"


class ProgressLog(TrainerCallback):
    """A bar on a terminal; elsewhere a line a minute, and one for each measurement and the last
    step."""

    def __init__(self, eval_split: str) -> None:
        self.eval_split = eval_split
        self._stack = contextlib.ExitStack()
        self._advance: Advance | None = None
        self._last = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show the bar."""
        if state.is_world_process_zero:
            self._advance = self._stack.enter_context(bar("training", state.max_steps, "steps"))
            self._last = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar."""
        if self._advance:
            self._advance(state.global_step - self._last)
            self._last = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Show what the log says of the steps."""
        if not self._advance or not logs or "loss" not in logs:
            return
        self._tell(
            state,
            {
                "loss": logs["loss"],
                "accuracy": logs.get("rewards/accuracies"),
                "margin": logs.get("rewards/margins"),
            },
        )

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say that it measures."""
        if self._advance:
            self._advance(0, note="evaluating")

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any
    ) -> None:
        """Show what was measured."""
        if self._advance and metrics:
            self._tell(
                state,
                {
                    f"split {self.eval_split}: loss": metrics.get("eval_loss"),
                    "accuracy": metrics.get("eval_rewards/accuracies"),
                    "margin": metrics.get("eval_rewards/margins"),
                },
                measured=True,
            )

    def _tell(
        self, state: Any, figures: dict[str, float | None], *, measured: bool = False
    ) -> None:
        tied = figures["accuracy"] == 0 and figures["margin"] == 0  # the policy is its reference
        if tied:
            figures = {**figures, "accuracy": None}
        words = [f"{name} {value:.3f}" for name, value in figures.items() if value is not None]
        words += ["accuracy – (every pair is tied)"] if tied else []
        note = "  ".join(words)
        if self._advance:
            self._advance(0, note=note)
        if note and not sys.stderr.isatty() and (measured or state.global_step >= state.max_steps):
            say(f"step {state.global_step}/{state.max_steps}  {note}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the bar away."""
        self._stack.close()


def show_progress(trainer: Trainer, eval_split: str) -> None:
    """Progress in the project's own way: one bar on a terminal, log lines on stderr elsewhere."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ProgressLog(eval_split))
