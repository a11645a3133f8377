"""OpenAI-compatible servers: a request that is tried again, completions, log-probs, many at a time.

The key comes from the environment and stands in no output, error or record. No torch.
"""

from mrpo_tools.server.about import About, ask_about
from mrpo_tools.server.chat import Chat, ChatReply
from mrpo_tools.server.client import Client, Refused, Server
from mrpo_tools.server.completions import Completion, Completions, served_model
from mrpo_tools.server.many import GaveUp, together
from mrpo_tools.server.prompt_logprobs import PromptLogprobs

__all__ = [
    "About",
    "Chat",
    "ChatReply",
    "Client",
    "Completion",
    "Completions",
    "GaveUp",
    "PromptLogprobs",
    "Refused",
    "Server",
    "ask_about",
    "served_model",
    "together",
]
