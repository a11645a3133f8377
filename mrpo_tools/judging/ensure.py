"""Which verdicts are missing -> ask the judge -> store, so that nothing is paid twice."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mrpo_tools.cache import Cache, VerdictRow, VerdictStore, WriterRecord
from mrpo_tools.cache.parts import UNUSABLE
from mrpo_tools.cache.upkeep import compact_store
from mrpo_tools.cache.writer import ended_by_sigterm
from mrpo_tools.judging.judge import Judge
from mrpo_tools.judging.purse import Budget, CostEstimate, Prices, Purse, estimate
from mrpo_tools.judging.questions import Question
from mrpo_tools.judging.reply import read_reply
from mrpo_tools.progress import bar
from mrpo_tools.server import Chat, ChatReply, Client, together

FEW_PARTS = 8
"""As many may stay; more are merged when all is answered."""


@dataclass(frozen=True)
class Verdicts:
    """What a judge said of some questions.

    Attributes:
        judge: who.
        store: where they are.
        rows: by verdict id; of a question that the budget did not reach there is none.
        reused: answered before.
        asked: now.
        unpaid: questions that the budget did not reach.
        purse: what was spent now.
        seconds: wall time.
    """

    judge: Judge
    store: VerdictStore
    rows: Mapping[str, VerdictRow]
    reused: int
    asked: int
    unpaid: int
    purse: Purse
    seconds: float


def missing_verdicts(
    judge: Judge, questions: Iterable[Question], cache: Cache
) -> tuple[VerdictStore, list[Question], dict[str, VerdictRow]]:
    """The questions that have no usable answer yet, each once, and the answers that are there."""
    store = cache.verdict_store(judge.name, judge.identity)
    wanted = {each.verdict_id: each for each in questions}
    rows = store.verdicts_of(wanted)
    here = {key: row for key, row in rows.items() if row.status != UNUSABLE}
    return store, [each for key, each in wanted.items() if key not in here], rows


def cost_of(judge: Judge, missing: Sequence[Question], prices: Prices | None) -> CostEstimate:
    """About what the missing verdicts cost."""
    messages = [judge.template.messages(each.texts, each.repeat) for each in missing]
    return estimate(messages, prices)


def ensure_verdicts(
    judge: Judge,
    questions: Iterable[Question],
    cache: Cache,
    budget: Budget | None = None,
    prices: Prices | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Verdicts:
    """Ask what was not answered before; every answer is on the disk before the next is waited for.

    A verdict that cannot be read is asked for again the next time; a refusal and an answer that
    the token limit cut would only come back, and stay.

    Args:
        judge: asked at temperature 0.
        questions: those that repeat are asked once.
        cache: where to look and to write.
        budget: None for as much as it takes.
        prices: of tokens, where they are known.
        environment: where the key is.

    Raises:
        ServerError: some requests came to nothing; what was answered is kept.
        Preempted: SIGTERM came; the same.
        ResourceError: the disk is full.
    """
    started = time.monotonic()
    store, missing, rows = missing_verdicts(judge, questions, cache)
    reused = sum(row.status != UNUSABLE for row in rows.values())
    purse = Purse(budget or Budget(), prices, judge.max_tokens)
    record = WriterRecord(scorer=judge.words, started=time.time())
    asked = 0
    if missing:
        with ended_by_sigterm(), bar(f"verdicts by {judge.name}", len(missing), "verdicts") as tell:
            try:
                for batch in _answers(judge, missing, purse, environment):
                    store.append(batch, record)
                    rows.update((row.verdict_id, row) for row in batch)
                    asked += len(batch)
                    tell(len(batch))
            finally:
                if len(store.part_paths()) > FEW_PARTS:
                    compact_store(store)
    unpaid, seconds = len(missing) - asked, time.monotonic() - started
    return Verdicts(judge, store, rows, reused, asked, unpaid, purse, seconds)


def _answers(
    judge: Judge, missing: Sequence[Question], purse: Purse, environment: Mapping[str, str]
) -> Iterator[list[VerdictRow]]:
    """Rows as they come; none of a question that the purse does not reach."""
    with Client(judge.server, environment) as client:
        chat = Chat(client, judge.model, judge.max_tokens)

        def ask(each: Question) -> ChatReply | None:
            messages = judge.template.messages(each.texts, each.repeat)
            return paid(chat, messages, each.repeat, purse)

        for batch in together(ask, missing, judge.server.concurrency):
            rows = [_row(each, reply, judge) for each, reply in batch if reply is not None]
            if rows:
                yield rows


def paid(
    chat: Chat, messages: Sequence[Mapping[str, str]], seed: int, purse: Purse
) -> ChatReply | None:
    """A reply that the purse pays; None where it cannot.

    Raises:
        ServerError: see `Chat.ask`.
    """
    aside = purse.take(messages)
    if aside is None:
        return None
    try:
        reply = chat.ask(messages, seed)
    except BaseException:
        purse.settle(aside, None)
        raise
    purse.settle(aside, reply)
    return reply


def _row(asked: Question, reply: ChatReply, judge: Judge) -> VerdictRow:
    said = read_reply(reply, judge.template)
    return VerdictRow(
        asked.verdict_id,
        asked.prompt_id,
        asked.first_id,
        asked.second_id,
        asked.repeat,
        said.number,
        said.label,
        said.status,
        said.reasoning,
        reply.prompt_tokens,
        reply.completion_tokens,
    )
