"""Policies judged by their answers; policies and references judged as preference models.

outcomes     the verb: generated answers, their marks, how far the policy went; `judging` is its
             arithmetic, `rules` are the user's
evaluate     the verb: a run or a model on a split; `policy_metrics` is its arithmetic
rank         the verb: references before any training; `ranking` measures, `leading` says by which
             accuracy, `evidence` how sure it is, and `recommendation` advises by stated rules
estimates    means over groups with their intervals
"""
