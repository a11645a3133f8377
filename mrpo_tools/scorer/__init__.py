"""Ids -> log-probs of responses, for both phases.

trees            prompts with their responses as trees: a shared prompt is computed once
attention        attention over trees in one line, without padding: one call or piece by piece
variable_length  all pieces in one call of torch's kernel
pieces           each piece in blocks of queries
head             logits in float32 from 16-bit weights
rotary           rows for which a model has other rotary frequencies, apart
scorer           a causal LM as a function from token batches to log-probs
self_check       the fastest route that is exact for a model
loaded           a reference's model as phase 1 asks it
blueprint        a model by its configuration alone, with a few layers of each kind
memory           live bytes of a pass or a step, on tensors without storage
speed            seconds of batches, from a probe of a few layers
"""
