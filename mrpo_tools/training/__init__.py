"""Phase 2: a policy trained against cached log-probs.

train        the verb: prepare, check, fit, save
prepare      everything that can be refused or computed before any weights are loaded
groups       groups with ids and cached numbers, and the batches made of them
policy       which model it is, and that model loaded
step0        the live policy against the cached numbers of reference 1
trainer      the Trainer with the exact loss; `arguments`, `callbacks`, `figures` go with it
activations  whether a step's activations fit into memory
record       what a run says of itself
"""
