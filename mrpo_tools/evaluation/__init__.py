"""Policies and references judged as preference models, from cached numbers.

evaluate     the verb: a run or a model on a split; `policy_metrics` is its arithmetic
rank         the verb: references before any training; `ranking` measures, `leading` says by which
             accuracy, `evidence` how sure it is, and `recommendation` advises by stated rules
estimates    means over groups with their intervals
"""
