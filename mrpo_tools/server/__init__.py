"""OpenAI-compatible servers: a request that is tried again, completions, many at a time. No torch.

The key comes from the environment and stands in no output, error or record.
"""

from mrpo_tools.server.chat import Chat, ChatReply
from mrpo_tools.server.client import Client, Refused, Server
from mrpo_tools.server.completions import Completion, Completions, served_model
from mrpo_tools.server.many import together

__all__ = [
    "Chat",
    "ChatReply",
    "Client",
    "Completion",
    "Completions",
    "Refused",
    "Server",
    "served_model",
    "together",
]
