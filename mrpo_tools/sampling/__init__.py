"""Answers of a model to prompts, greedy or sampled, that depend on nothing else that is asked."""

from mrpo_tools.sampling.answers import GREEDY, Answer, Sampling
from mrpo_tools.sampling.engine import Sampler, generate, prompts_of

__all__ = ["GREEDY", "Answer", "Sampler", "Sampling", "generate", "prompts_of"]
