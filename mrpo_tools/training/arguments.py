"""A recipe in the Trainer's own words."""

from __future__ import annotations

from pathlib import Path

from transformers import TrainingArguments

from mrpo_tools.config import Recipe
from mrpo_tools.references.devices import pick_device, process_backend
from mrpo_tools.references.transformers_private import use_one_gpu


def training_arguments(
    recipe: Recipe, output: Path, products: str = "float32"
) -> TrainingArguments:
    """What the Trainer is told of a recipe whose run is in `output`.

    Args:
        recipe: the words.
        output: the run's directory.
        products: their dtype; the scorer sees to it, and of float16 the loss is scaled here.
    """
    on_cpu = pick_device().type == "cpu"
    arguments = TrainingArguments(
        output_dir=str(output),
        learning_rate=recipe.learning_rate,
        per_device_train_batch_size=recipe.per_device_train_batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        num_train_epochs=recipe.num_train_epochs,
        max_steps=recipe.max_steps,
        lr_scheduler_type=recipe.lr_scheduler_type,
        warmup_steps=recipe.warmup_ratio,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        seed=recipe.seed,
        data_seed=recipe.seed,
        logging_steps=recipe.logging_steps,
        save_steps=recipe.save_steps,
        eval_strategy="steps" if recipe.eval_steps else "no",
        eval_steps=recipe.eval_steps,
        eval_on_start=recipe.eval_steps is not None,
        logging_first_step=True,
        disable_tqdm=True,
        report_to=[],
        remove_unused_columns=False,
        fp16=products == "float16",  # scales the loss
        dataloader_pin_memory=pick_device().type == "cuda",
        use_cpu=on_cpu,
        ddp_backend=process_backend(),
        ddp_find_unused_parameters=False,
        gradient_checkpointing=False,  # the model's own is set before it is wrapped
    )
    _ = arguments.device  # finds the devices; more than one would mean nn.DataParallel
    use_one_gpu(arguments)
    return arguments
