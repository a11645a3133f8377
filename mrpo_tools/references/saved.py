"""The tensors of a model or an adapter by the names that its files give them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def saved_tensors(model: Any) -> dict[str, Tensor]:
    """What `save_pretrained` writes of a model, or of the adapter in it, by name."""
    if getattr(model, "peft_config", None) is not None:
        from peft import get_peft_model_state_dict

        return dict(get_peft_model_state_dict(model, save_embedding_layers=False))
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


@contextmanager
def opened_tensors(folder: Path) -> Iterator[Mapping[str, Callable[[], Tensor]]]:
    """The tensors of a folder's safetensors files by name; each is read when it is called."""
    from safetensors import safe_open

    with ExitStack() as stack:
        readers: dict[str, Callable[[], Tensor]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            file = stack.enter_context(safe_open(path, framework="pt"))
            for name in file.keys():  # noqa: SIM118  the file is no mapping
                readers[name] = partial(file.get_tensor, name)
        yield readers
