"""Log-probs by the shortest way there is, sharing no code with the project's scorer."""

from __future__ import annotations

import torch


def response_logp(model, prompt_ids: list[int], response_ids: list[int]) -> torch.Tensor:
    """Sum over a response's tokens of `log_softmax(model(ids).logits)`, one row, no padding."""
    ids = torch.tensor([[*prompt_ids, *response_ids]])
    log_probs = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0].float(), dim=-1)
    total = torch.zeros((), dtype=torch.float64)
    for position in range(len(prompt_ids), ids.shape[1]):
        total = total + log_probs[position - 1, ids[0, position]].double()
    return total


def group_logps(model, encoded, width: int) -> torch.Tensor:
    """[G, N] log-probs of encoded groups, one row at a time; NaN beyond a group's responses."""
    logps = torch.full((len(encoded), width), torch.nan, dtype=torch.float64)
    for g, group in enumerate(encoded):
        for n, response in enumerate(group.responses):
            logps[g, n] = response_logp(model, group.prompt_ids, response.ids)
    return logps
