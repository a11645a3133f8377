"""Hidden states of many batches between two layers: on the device, in memory, or in a file."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mrpo_tools.errors import disk_error
from mrpo_tools.references.devices import free_bytes

SHARE = 0.5
"""Of free memory that hidden states may take."""


class States:
    """The hidden states of some passes.

    They stay on the device as long as they take no more than `SHARE` of what is free there, then go
    to the memory of the machine, then to a file that is removed with them.

    Args:
        count: of passes.
        device: where layers compute.
        room: bytes that they may take by kind of device, the first one first; None measures them.
        folder: of the file; None takes the system's for what is temporary.

    Attributes:
        tokens: of the passes that are kept.
    """

    def __init__(
        self,
        count: int,
        device: torch.device,
        room: Mapping[str, float] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.device, self.folder = device, folder
        self.tokens = 0
        self._kept: list[Tensor | None] = [None] * count
        self._room = dict(_room(device) if room is None else room)

    def of(self, number: int) -> Tensor:
        """The states of a pass, [R, T, D], on the device."""
        kept = self._kept[number]
        if kept is None:
            raise IndexError(f"pass {number} has no hidden states yet")
        return kept.to(self.device)

    def keep(self, number: int, states: Tensor) -> None:
        """Keep the states of a pass, in place of those before."""
        kept = self._kept[number]
        if kept is None:
            self._kept[number] = self._placed(states)
            self.tokens += states.shape[0] * states.shape[1]
        else:
            kept.copy_(states)

    def forget(self, number: int) -> None:
        """Let the states of a pass go."""
        self._kept[number] = None

    def _placed(self, states: Tensor) -> Tensor:
        for kind in self._room:
            if states.nbytes <= self._room[kind]:
                self._room[kind] -= states.nbytes
                return states.to(kind) if kind != states.device.type else states.clone()
        return self._in_file(states)

    def _in_file(self, states: Tensor) -> Tensor:
        """A copy in a file without a name, which goes when the tensor does."""
        try:
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix="mrpo-states-") as file:
                if hasattr(os, "posix_fallocate"):  # a full disk must not be met while writing
                    os.posix_fallocate(file.fileno(), 0, states.nbytes)
                numbers = torch.from_file(
                    file.name, shared=True, size=math.prod(states.shape), dtype=states.dtype
                )
        except (OSError, RuntimeError) as error:
            reason = error if isinstance(error, OSError) else OSError(str(error))
            raise disk_error(self.folder or tempfile.gettempdir(), reason) from None
        return numbers.view(states.shape).copy_(states)


def _room(device: torch.device) -> dict[str, float]:
    """What is free on the device, then in the memory of the machine."""
    devices = dict.fromkeys((device, torch.device("cpu")))
    return {each.type: SHARE * free_bytes(each) for each in devices}
