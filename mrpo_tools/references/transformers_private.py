"""Every private name of transformers that the project calls, sets or overrides.

A release may move such a name without a word. `PRIVATE_NAMES` says where each one is, what it
takes and why it is needed; the tests compare that with the release that is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PrivateName:
    """One private name of transformers.

    Attributes:
        module: that defines it.
        name: a function, or `Class.attribute`.
        parameters: of a function, `self` left out; None of what is no function.
        reason: what is done with it that no public name does.
        last_seen: the newest release in which it was found so.
    """

    module: str
    name: str
    parameters: tuple[str, ...] | None
    reason: str
    last_seen: str


PRIVATE_NAMES = (
    PrivateName(
        module="transformers.utils.chat_template_utils",
        name="_compile_jinja_template",
        parameters=("chat_template",),
        reason="a template is compiled once, and rendered with variables of our own",
        last_seen="5.23",
    ),
    PrivateName(
        module="transformers",
        name="PreTrainedConfig._attn_implementation",
        parameters=None,
        reason="the attention function that a model was loaded with, to go back to after `tree`",
        last_seen="5.23",
    ),
    PrivateName(
        module="transformers",
        name="TrainingArguments._n_gpu",
        parameters=None,
        reason="several GPUs of one process would make the Trainer wrap the model in DataParallel",
        last_seen="5.23",
    ),
    PrivateName(
        module="transformers",
        name="Trainer._get_num_items_in_batch",
        parameters=("batch_samples", "device"),
        reason="overridden: the loss is a mean over the usable groups of a step, not over tokens",
        last_seen="5.23",
    ),
    PrivateName(
        module="transformers",
        name="Trainer._save",
        parameters=("output_dir", "state_dict"),
        reason="overridden: what is saved is the model inside the scorer",
        last_seen="5.23",
    ),
    PrivateName(
        module="transformers",
        name="Trainer._load_from_checkpoint",
        parameters=("resume_from_checkpoint", "model"),
        reason="overridden: what is loaded is the model inside the scorer",
        last_seen="5.23",
    ),
    PrivateName(
        module="transformers",
        name="Trainer._save_optimizer_and_scheduler",
        parameters=("output_dir",),
        reason="overridden: of a policy that is shared out, whole states are saved",
        last_seen="5.23",
    ),
    PrivateName(
        module="transformers",
        name="Trainer._load_optimizer_and_scheduler",
        parameters=("checkpoint",),
        reason="overridden: whole states are loaded into a policy that is shared out",
        last_seen="5.23",
    ),
    PrivateName(
        module="transformers",
        name="Trainer._load_best_model",
        parameters=(),
        reason="overridden: the best checkpoint is loaded into the model inside the scorer",
        last_seen="5.23",
    ),
)


def compile_template(template: str) -> Callable[..., str]:
    """The rendering function of a chat template, sandboxed as the library has it."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    render: Callable[..., str] = _compile_jinja_template(template).render
    return render


def attention_of(config: Any) -> str:
    """The attention function of a model's configuration: `sdpa`, `eager`, `tree`, …"""
    return str(config._attn_implementation)


def use_one_gpu(arguments: Any) -> None:
    """Keep the Trainer of these `TrainingArguments` from spreading a model over several GPUs."""
    arguments._n_gpu = min(1, arguments.n_gpu)
