"""The mathematics: pure functions on tensors, importing torch and the standard library only.

Shapes: B groups, N responses of a group (ragged, with a boolean mask), K references. Log-probs are
natural logs summed over a response's tokens, in nats.
"""
