"""Conversations that are written as one text."""

from __future__ import annotations

import re

from mrpo_tools.groups import user_prompt
from mrpo_tools.messages import Message
from mrpo_tools.sources.adapters.conversation import Prompt, ending_with_user
from mrpo_tools.sources.adapters.fields import Field

_ROLES = {"Human": "user", "User": "user", "Assistant": "assistant"}
_SPOKEN = re.compile(r"(?:^\s*|\n\n)(Human|Assistant):")
_HELPSTEER = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def transcript(field: Field) -> Prompt:
    """The turns of `\\n\\nHuman: …\\n\\nAssistant: …`; who speaks on adds to the same turn.

    The spaces around a turn belong to the transcript and are dropped.
    """
    text = field.text("a transcript of Human: and Assistant: turns")
    pieces = _SPOKEN.split(text)
    if text and (pieces[0].strip() or len(pieces) == 1):
        field.bad("begins without 'Human:', expected a transcript of Human: and Assistant: turns")
        return ()
    turns: list[Message] = []
    for speaker, said in zip(pieces[1::2], pieces[2::2], strict=True):
        role = _ROLES[speaker]
        if turns and turns[-1].role == role:
            turns[-1] = Message(role, f"{turns[-1].content}\n\n{said.strip()}".strip())
        else:
            turns.append(Message(role, said.strip()))
    return tuple(turns)


def transcript_prompt(field: Field) -> Prompt:
    """The prompt in a transcript, which may end with the empty turn that is to be completed.

    Knows HelpSteer's form too: the first question, then `<extra_id_1>Assistant` and so on. A text
    without any mark is one user turn.
    """
    text = field.value if isinstance(field.value, str) else ""
    first, *pieces = _HELPSTEER.split(text)
    if pieces:
        spoken = zip(pieces[::2], pieces[1::2], strict=True)
        turns: Prompt = (
            Message("user", first),
            *(Message(_ROLES[speaker], said) for speaker, said in spoken),
        )
        field.text()
    elif _SPOKEN.match(text):
        turns = transcript(field)
    else:
        return user_prompt(field.text("text or a transcript"))
    if len(turns) > 1 and turns[-1].role == "assistant" and not turns[-1].content.strip():
        turns = turns[:-1]
    if any(not turn.content.strip() for turn in turns):
        field.bad("has an empty turn, expected text after every speaker")
    return ending_with_user(field, turns)
