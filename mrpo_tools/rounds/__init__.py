"""Rounds: sample from the policy, score, compute what the references miss, train, measure, again.

plan      what a recipe of rounds says
mixing    which prompts a round asks, and which groups it trains on
record    what a round measured: `round.json` in its directory
step      one round, by the verbs that exist alone
rounds    all of them, one after another; the table
"""
