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
        "transformers.utils.chat_template_utils",
        "_compile_jinja_template",
        ("chat_template",),
        "a template is compiled once and rendered with variables of our own (the pinned date)",
        "5.23",
    ),
    PrivateName(
        "transformers",
        "PreTrainedConfig._attn_implementation",
        None,
        "the attention function that a model was loaded with, to go back to after `tree`",
        "5.23",
    ),
    PrivateName(
        "transformers",
        "TrainingArguments._n_gpu",
        None,
        "several GPUs of one process would make the Trainer wrap the model in DataParallel",
        "5.23",
    ),
    PrivateName(
        "transformers",
        "Trainer._get_num_items_in_batch",
        ("batch_samples", "device"),
        "overridden: the loss is a mean over the usable groups of a step, not over tokens",
        "5.23",
    ),
    PrivateName(
        "transformers",
        "Trainer._save",
        ("output_dir", "state_dict"),
        "overridden: what is saved is the model inside the scorer",
        "5.23",
    ),
    PrivateName(
        "transformers",
        "Trainer._load_from_checkpoint",
        ("resume_from_checkpoint", "model"),
        "overridden: what is loaded is the model inside the scorer",
        "5.23",
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
