"""Scores of responses: by rules, reward models and judges, kept in the cache like log-probs.

protocol   what a scorer is, whoever it is; another kind is another class like these
rules      a function of the user's own
reward     a reward model, before its weights are loaded; `lines` that it reads; `pooling`: loaded,
           batched, checked
judge      a model behind a chat endpoint, which rates
named      a name or a project's words -> a scorer; whether its stored scores are still its own
ensure     which responses have no score yet -> score -> store
apply      groups with the scores of a scorer in place of the data's own
"""

from mrpo_tools.scoring.apply import with_scores
from mrpo_tools.scoring.ensure import ensure_scores
from mrpo_tools.scoring.protocol import Scorer, Scoring, marks_of

__all__ = ["Scorer", "Scoring", "ensure_scores", "marks_of", "with_scores"]
