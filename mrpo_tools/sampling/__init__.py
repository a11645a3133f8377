"""Answers of a model to prompts, greedy or sampled, that depend on nothing else that is asked."""

from mrpo_tools.sampling.answers import GREEDY, Answer, Sampling
from mrpo_tools.sampling.engine import Sampler, prompts_of
from mrpo_tools.sampling.samples import Samples, sample_groups

__all__ = ["GREEDY", "Answer", "Sampler", "Samples", "Sampling", "prompts_of", "sample_groups"]
