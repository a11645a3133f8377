"""The mathematics: pure functions on tensors, importing torch, the standard library and `words`.

Shapes: B groups, N responses of a group (ragged, with a boolean mask), K references. Log-probs are
natural logs summed over a response's tokens, in nats.

judgements   who is preferred in a group        contrasts   chosen sets and pairs
references   weights, trust region, virtual reference
objectives   every objective as a function      terms       the numbers of a batch
metrics      how well rewards rank responses    logprobs    hidden states -> log-probs
noise        what 16 bits explain, no torch
statistics   repeated measurements, no torch    resampling  the bootstrap
shapes       checks of shapes, masked reductions
"""
