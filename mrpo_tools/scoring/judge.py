"""A judge as a scorer: a model behind a chat endpoint rates each answer."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from mrpo_tools.cache import ScoreRow, WriterRecord
from mrpo_tools.cache.parts import FAILED
from mrpo_tools.config import ScoringJudge
from mrpo_tools.groups import Group, Response
from mrpo_tools.judging.judge import Judge, judge_of
from mrpo_tools.judging.questions import answer_text, prompt_text
from mrpo_tools.judging.reply import read_reply
from mrpo_tools.references.identity import Identity
from mrpo_tools.scoring.protocol import SCORING_VERSION, KindOfScorer, Scoring
from mrpo_tools.server import Chat, ChatReply, Client, together


class _Asked(NamedTuple):
    """One answer that is rated."""

    response_id: str
    group: Group
    response: Response


@dataclass(frozen=True)
class JudgeScorer:
    """Ratings of answers by a judge.

    Attributes:
        name: as tables and the cache call it.
        judge: who rates.
        project_words: as a project's `scorers:` has them.
        environment: where the key is.
    """

    name: str
    judge: Judge
    project_words: ScoringJudge
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    kind: ClassVar[KindOfScorer] = "judge"

    @property
    def store_name(self) -> str:
        """The same."""
        return self.name

    @cached_property
    def stored_identity(self) -> Identity:
        """The judge's, and that it gives scores."""
        fields = {"scorer": "judge", "scoring_version": SCORING_VERSION}
        return Identity({**self.judge.identity.fields, **fields})

    @property
    def identity(self) -> str:
        """Hash of these."""
        return self.stored_identity.hash

    @property
    def words(self) -> Mapping[str, Any]:
        """As a project's `scorers:` has them; no key."""
        return self.project_words.model_dump(mode="json")

    @property
    def full_marks(self) -> float | None:
        """The highest rating of the template."""
        ratings = self.judge.template.ratings
        return None if ratings is None else float(ratings[1])

    def begin(self, groups: Sequence[Group]) -> Scoring:
        """Ask for the rating of every response; one that gets none is `failed`, with the reason."""
        record = WriterRecord(scorer=self.words, started=time.time())
        return Scoring(self._rows(groups), record)

    def _rows(self, groups: Sequence[Group]) -> Iterator[list[ScoreRow]]:
        judge = self.judge
        asked = [
            _Asked(key, group, response)
            for group in groups
            for key, response in zip(group.response_ids, group.responses, strict=True)
        ]
        with Client(judge.server, self.environment) as client:
            chat = Chat(client, judge.model, judge.max_tokens)

            def ask(each: _Asked) -> ChatReply:
                texts = {
                    "prompt": prompt_text(each.group),
                    "response": answer_text(each.response.message),
                }
                return chat.ask(judge.template.messages(texts))

            for batch in together(ask, asked, judge.server.concurrency):
                yield [self._row(each, reply) for each, reply in batch]

    def _row(self, asked: _Asked, reply: ChatReply) -> ScoreRow:
        said = read_reply(reply, self.judge.template)
        if said.number is None:
            reason = f"{said.status}: {said.reasoning or 'nothing was said'}"
            return ScoreRow(asked.response_id, asked.group.prompt_id, None, FAILED, reason=reason)
        return ScoreRow(
            asked.response_id,
            asked.group.prompt_id,
            said.number,
            num_tokens=reply.prompt_tokens,
            reason=said.reasoning,
        )


def judge_scorer(name: str, words: ScoringJudge) -> JudgeScorer:
    """A judge by its words; without a model in them the server is asked which one it serves.

    Args:
        name: empty for one made of the model's name and the template's.
        words: of the project, or of the command line.

    Raises:
        ServerError: the server does not answer, or serves several models and none is named.
        UsageError: no such server or template.
    """
    judge = judge_of(
        words.judge,
        words.template,
        of_pairs=False,
        max_tokens=words.max_tokens,
        concurrency=words.concurrency,
        timeout=words.timeout,
    )
    named = f"{judge.server.base}#{judge.model}"
    return JudgeScorer(name or judge.name, judge, words.model_copy(update={"judge": named}))
