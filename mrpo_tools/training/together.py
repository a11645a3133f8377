"""What several processes of one training run decide together.

Where parameters or gradients are shared out, every pass through the model is a conversation of all
processes: one that makes a pass more, or takes another route, waits for the others for ever.
"""

from __future__ import annotations

import torch
from torch import distributed


def any_process(flag: torch.Tensor) -> bool:
    """Whether a flag is raised in this process or, where there are several, in any of them."""
    if not distributed.is_initialized():
        return bool(flag)
    raised = flag.float()
    distributed.all_reduce(raised, distributed.ReduceOp.MAX)
    return bool(raised)


def missing_passes(count: int, device: torch.device) -> int:
    """How many passes this process has fewer than the one that has the most; 0 of one alone."""
    if not distributed.is_initialized():
        return 0
    most = torch.tensor(count, device=device)
    distributed.all_reduce(most, distributed.ReduceOp.MAX)
    return int(most) - count
