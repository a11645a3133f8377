"""From words to models: tokenizers, weights, quantisation, adapters."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from mrpo_tools.config import Reference
from mrpo_tools.errors import MrpoError, ResourceError, UsageError
from mrpo_tools.references.adapters import lora_settings
from mrpo_tools.references.devices import out_of_memory, pick_device
from mrpo_tools.references.model_files import ModelFiles, first_line, is_failure
from mrpo_tools.references.sizes import (
    check_counts,
    check_promised,
    missing_keys,
    refuse_missing,
)
from mrpo_tools.references.staging import staged

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


HEAD = "score"
"""What transformers calls the head of a decoder that classifies sequences; nf4 leaves it alone."""


def load_tokenizer(files: ModelFiles, reference: Reference) -> PreTrainedTokenizerBase:
    """A model's own tokenizer."""
    from transformers import AutoTokenizer

    trusted = reference.trust_remote_code
    with (
        named_errors(f"the tokenizer of {reference.model}"),
        staged(files.model, trusted=trusted) as stage,
    ):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            stage, trust_remote_code=trusted, local_files_only=True
        )
        tokenizer("a")
    tokenizer.name_or_path = str(files.model)
    return tokenizer


def load_model(
    files: ModelFiles,
    reference: Reference,
    dtype: str,
    device: torch.device | None = None,
    *,
    quantized: bool = True,
    device_map: Mapping[str, int | str] | None = None,
) -> PreTrainedModel:
    """A causal LM on the device, with its adapter and without dropout.

    Args:
        files: where it lies.
        reference: quantisation, attention kernel, remote code.
        dtype: the arithmetic; with `nf4` that of the products.
        device: None picks the accelerator.
        quantized: False ignores the reference's quantisation.
        device_map: modules by name -> the number of a GPU, or `cpu` for layers that visit the first
            one when they are computed; None puts all of them on the device.

    Raises:
        ResourceError: it does not fit into memory.
        UsageError: the files cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    device = device or pick_device()
    options = loading_options(reference, dtype, device, quantized=quantized)
    if device_map is not None:
        options["device_map"] = dict(device_map)
    trusted, auto = reference.trust_remote_code, AutoModelForCausalLM
    with named_errors(f"model {reference.model}"):
        model: Any = _load_whole(files.model, options, trusted=trusted, auto=auto)
        if files.adapter is not None:
            from peft import LoraConfig, PeftModel

            settings = LoraConfig(**lora_settings(files.adapter))
            model = PeftModel.from_pretrained(model, files.adapter, config=settings)
        keep_differentiable(model)
        model.eval()
        _try(model, device if device_map is None else _first(device_map))
    return cast("PreTrainedModel", model)


def load_reward_model(
    files: ModelFiles, reference: Reference, dtype: str, device: torch.device
) -> Any:
    """A sequence classifier of one label, whose head computes in float32.

    Args:
        files: where it lies.
        reference: quantisation, attention kernel, remote code.
        dtype: the arithmetic of all but the head.
        device: where to.

    Raises:
        ResourceError: it does not fit into memory.
        UsageError: the files cannot be loaded, or have not one label, or no trained head.
    """
    from transformers import AutoModelForSequenceClassification

    if files.adapter is not None:
        raise UsageError(
            f"reward model {reference.model} has an adapter, which is not read",
            "merge it into its model first",
        )
    for word in ("device_map", "stream_layers"):
        if getattr(reference, word):
            raise UsageError(
                f"{word} is for references, and {reference.model} is a reward model",
                "leave it out: a reward model lies on one device",
            )
    options = loading_options(reference, dtype, device)
    if "quantization_config" in options:
        options["quantization_config"].llm_int8_skip_modules = [HEAD]
    trusted, auto = reference.trust_remote_code, AutoModelForSequenceClassification
    with named_errors(f"reward model {reference.model}"):
        _check_label(reference, load_config(files.model, trusted=trusted, auto=auto))
        model = _load_whole(files.model, options, trusted=trusted, auto=auto)
        _widen_head(model)
        model.eval()
        _try(model, device)
    return model


def _check_label(reference: Reference, config: Any) -> None:
    if config.num_labels != 1:
        raise UsageError(
            f"{reference.model} has {config.num_labels} labels, and a reward model has one: which "
            "of several is the score cannot be known, and a plain language model has none",
            "give a sequence classifier whose config.json has one label",
        )


def _widen_head(model: Any) -> None:
    """Compute the score of a linear head in float32: 16 bits round a score of 20 to eighths."""
    head = getattr(model, HEAD, None)
    if isinstance(head, torch.nn.Linear):
        head.float()
        head.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))


def loading_options(
    reference: Reference, dtype: str, device: torch.device, *, quantized: bool = True
) -> dict[str, Any]:
    """What `from_pretrained` is told."""
    options: dict[str, Any] = {
        "dtype": getattr(torch, dtype),
        "device_map": {"": device},
        "use_safetensors": True,
    }
    if reference.attention in ("sdpa", "eager"):
        options["attn_implementation"] = reference.attention
    if reference.quantization == "nf4" and quantized:
        options["quantization_config"] = nf4(dtype)
    return options


def load_config(path: Path, *, trusted: bool = False, auto: Any = None) -> Any:
    """A model's configuration as the library has it, once its weights are those of such a model.

    Args:
        path: of its directory.
        trusted: its code may run.
        auto: the class of transformers that makes such a model; None takes that of causal LMs.

    Raises:
        UsageError: they are not, or a file asks for what is refused.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    held = check_counts(path)
    with staged(path, trusted=trusted) as stage:
        config = AutoConfig.from_pretrained(stage, trust_remote_code=trusted, local_files_only=True)
    if not trusted:
        check_promised(path, config, held, auto or AutoModelForCausalLM)
    return config


def _load_whole(path: Path, options: dict[str, Any], *, trusted: bool, auto: Any) -> Any:
    """A model of all the weights that its configuration promises, and of no others."""
    options = {**options, "trust_remote_code": trusted, "local_files_only": True}
    if not trusted:
        options["config"] = load_config(path, auto=auto)
    with staged(path, trusted=trusted, weights=True) as stage:
        loaded: Any = auto.from_pretrained(stage, output_loading_info=True, **options)
    model, info = loaded
    refuse_missing(path, missing_keys(info))
    model.name_or_path = model.config._name_or_path = str(path)
    return model


def _first(device_map: Mapping[str, int | str]) -> int | str:
    """The first device of a map that computes: layers in the memory of the machine visit it."""
    return next((place for place in device_map.values() if place != "cpu"), "cpu")


@torch.no_grad()
def _try(model: Any, device: torch.device | int | str) -> None:
    """Compute two tokens, so that a model that cannot compute is told here."""
    model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=device), use_cache=False)


def keep_differentiable(model: torch.nn.Module) -> None:
    """Keep 4-bit layers from repacking their weights on CPUs with AVX512-BF16.

    bitsandbytes does so at the first forward pass without gradient. A repacked layer computes in
    bfloat16 and has no backward: later gradients would be silently wrong.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.__dict__["support_avx512bf16_for_cpu"] = False


def nf4(dtype: str) -> Any:
    """4-bit NormalFloat with double quantisation (QLoRA, Dettmers et al. 2023)."""
    from transformers import BitsAndBytesConfig

    configuration: Any = BitsAndBytesConfig  # transformers does not type it
    return configuration(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


def add_lora(model: PreTrainedModel, *, seed: int, **settings: Any) -> PreTrainedModel:
    """A fresh trainable LoRA adapter on a frozen model; with NF4 weights this is QLoRA.

    The adapter starts at zero effect: its first log-probs are the base model's.

    Args:
        model: frozen by this.
        seed: of its first weights.
        settings: of peft's `LoraConfig`: `r`, `lora_alpha`, `target_modules`, …
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if getattr(model, "is_loaded_in_4bit", False):
        norms = {
            name: parameter.dtype
            for name, parameter in model.named_parameters()
            if parameter.is_floating_point()
        }
        prepare: Any = prepare_model_for_kbit_training  # peft does not type it
        model = prepare(model, use_gradient_checkpointing=False)
        for name, parameter in model.named_parameters():
            if name in norms:  # the helper widens them; the reference was computed without that
                parameter.data = parameter.data.to(norms[name])
    torch.manual_seed(seed)
    config = LoraConfig(**{**settings, "task_type": "CAUSAL_LM"})
    try:
        adapted = cast("PreTrainedModel", get_peft_model(model, config))
    except ValueError as error:
        raise UsageError(f"lora_target_modules: {error}") from None
    _name_layers_in_order(adapted)
    return adapted


def train_on(model: PreTrainedModel) -> PreTrainedModel:
    """A model that was loaded with an adapter, whose adapter is to be trained further."""
    with_adapter: Any = model
    for name in with_adapter.peft_config:
        with_adapter.peft_config[name].inference_mode = False
        with_adapter.set_adapter(name)
    _name_layers_in_order(model)
    return model


def _name_layers_in_order(model: Any) -> None:
    """Have an adapter's file name its layers in order: as a set they come in another order in every
    process, and the file is part of the adapter's identity."""
    for config in model.peft_config.values():
        if isinstance(config.target_modules, set):
            config.target_modules = sorted(config.target_modules)


def keep_dropout(model: PreTrainedModel, probability: float) -> None:
    """Give an adapter's inputs dropout again, which the scorer takes from every layer."""
    for name, module in model.named_modules():
        if "lora_dropout" in name and isinstance(module, torch.nn.Dropout):
            module.p = probability


def merge_adapter(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its adapter's weights added into its own."""
    merge: Any = getattr(model, "merge_and_unload", None)
    return cast("PreTrainedModel", merge()) if merge else model


def quiet_libraries() -> None:
    """Keep the libraries' own bars and notices out of the output; their errors still show."""
    from transformers.utils import logging as untyped

    transformers_logging: Any = untyped
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    for library in ("bitsandbytes", "accelerate"):
        logging.getLogger(library).setLevel(logging.ERROR)
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # raised, too
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", message="The following device_map keys")  # of parameters


@contextlib.contextmanager
def named_errors(what: str) -> Iterator[None]:
    """Quiet loading, with errors in the project's words."""
    quiet_libraries()
    try:
        yield
    except MrpoError:
        raise
    except BaseException as error:  # the libraries' errors share no useful base
        if not is_failure(error):
            raise
        if out_of_memory(error):
            raise ResourceError(
                f"{what} does not fit into memory",
                "try --quantization nf4, or a smaller model; what else there is for large ones: "
                "docs/large_references.md",
            ) from None
        reason = first_line(error)
        raise UsageError(f"{what} cannot be loaded: {reason}", "check the path") from None
