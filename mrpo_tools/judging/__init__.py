"""Judges: a model behind a chat endpoint says which of two answers is better, or rates one.

template   what a judge is asked: a text with places, and the labels that it may answer with
reply      a judge's answer -> a label, through near-JSON
judge      a server, a model and a template: who is asked, and which verdicts are the same
questions  two answers in one order, as a question with a key
purse      calls, tokens and money: estimated before, counted on the way
ensure     which verdicts are missing -> ask -> store
outcomes   the verdicts of both orders -> who won a prompt, flips, agreement
"""

from mrpo_tools.judging.judge import Judge, judge_of
from mrpo_tools.judging.template import Template, load_template

__all__ = ["Judge", "Template", "judge_of", "load_template"]
