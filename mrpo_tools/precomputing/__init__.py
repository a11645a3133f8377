"""Phase 1: stream each reference over the data, one model in memory at a time.

precompute   the verb: every reference in turn
ensure       which responses have no number yet -> compute -> store
run          those responses -> ids -> one model's log-probs -> parts; `prefetch` overlaps them
encoded      responses as ids, trees and rows; `meter` says what is computed, `summary` what was
estimate     what it would take, without loading weights
rescore      stored numbers, computed once more
"""
