"""Chat templates at work in a process of their own, with limits of time, memory and length.

A template is a program, and it comes with the model: it may loop for ever, or write gigabytes by a
single word. The sandbox it is compiled for forbids neither, and no thread can be stopped. So it is
compiled and rendered in a forked process, which the kernel ends when its processor time is used
up, and which can open no file. One serves every template, until one breaks it; then another does.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import resource
import signal
import socket
import struct
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any, NoReturn

import psutil

from mrpo_tools.references.model_files import first_line
from mrpo_tools.references.transformers_private import compile_template

CPU_SECONDS = 5.0
"""Of processor time for one conversation; an honest template takes a ten-thousandth of it."""
WAIT_SECONDS = 50.0
"""Until a process that does not even use its processor time is given up."""
MEMORY_BYTES = 512 * 2**20
"""Beyond what the process begins with."""
OWN_CHARS = 200_000
"""That a template may write beside twice its conversation."""
EVERYTHING = (
    "{%- macro m(x) -%}{{- x ~ '\\N{DASH}\\n' | trim -}}{%- endmacro -%}{%- for x in [1] -%}"
    "{{- m(x) | wordwrap | pprint | escape -}}{{- lipsum(1) -}}{%- endfor -%}"
    "{{- raise_exception(messages | tojson) -}}"
)
"""A template for which the library imports all that any asks for."""
HEADER = struct.Struct("!q")

Conversation = Mapping[str, Any]
"""What a template sees, by name: `messages`, `add_generation_prompt`, …"""


class TemplateFailed(Exception):
    """A template refuses a conversation or cannot be compiled (the message is its own), or is
    stopped at a limit."""


@dataclass(frozen=True)
class Template:
    """A chat template with what it sees in every conversation.

    Attributes:
        source: its text.
        variables: values by name.
        today: the day that it is told, `2024-07-26`, where it asks for one.
    """

    source: str
    variables: Mapping[str, str | None]
    today: str | None = None

    def render(self, conversations: Sequence[Conversation]) -> list[str | TemplateFailed]:
        """The text of each conversation, or why there is none.

        Raises:
            TemplateFailed: the template cannot be compiled, or a limit stopped it.
        """
        kind, results = _server(os.getpid()).ask([asdict(self), conversations])
        if kind == "failed":
            raise TemplateFailed(results)
        return [text if kind == "text" else TemplateFailed(text) for kind, text in results]


@functools.cache
def _server(_process: int) -> _Server:
    """The server of a process; a forked copy of the process gets its own."""
    with contextlib.suppress(Exception):  # what rendering imports is imported before any fork
        compile_template(EVERYTHING)(messages=[])
    return _Server()


class _Server:
    """The forked process, seen from the other side."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._end: Callable[[], object] | None = None

    def ask(self, request: object) -> Any:
        """What the process answers; it is started where there is none."""
        with self._lock:
            if self._end is None:
                self._start()
            try:
                _send(self._socket, request)
                return _receive(self._socket)
            except (OSError, EOFError):
                self.stop()
        limits = f"{CPU_SECONDS:g} s, or {MEMORY_BYTES // 2**20} MB"
        return "failed", f"it takes more than {limits}, for one conversation"

    def stop(self) -> None:
        """End the process; the next question starts another."""
        if self._end is not None:
            self._end()
            self._end = None

    def _start(self) -> None:
        self._socket, other = socket.socketpair()
        with warnings.catch_warnings():  # of forking beside threads: the child takes no lock
            warnings.simplefilter("ignore", DeprecationWarning)
            process = os.fork()
        if process == 0:
            _serve(other)
        other.close()
        self._socket.settimeout(WAIT_SECONDS)
        self._end = weakref.finalize(self, _end, process, self._socket, os.getpid())


def _end(process: int, channel: socket.socket, parent: int) -> None:
    if os.getpid() == parent:  # and not a forked copy
        channel.close()
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def _serve(channel: socket.socket) -> NoReturn:
    """The life of the forked process: conversations in, texts out, until nobody asks."""
    try:
        _confine(channel.fileno())
        while True:
            template, conversations = _receive(channel)
            _send(channel, _answer(Template(**template), conversations))
    finally:  # nothing of the parent's is ended, flushed or told
        os._exit(0)


def _confine(channel: int) -> None:
    """Nothing of the parent's stays open, and nothing goes on without end."""
    gc.disable()  # what the parent holds is not this process's to end
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent's to answer; then nobody asks any more
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    os.closerange(3, channel)
    os.closerange(channel + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    size = psutil.Process().memory_info().vms + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


def _answer(template: Template, conversations: Sequence[Conversation]) -> object:
    """`failed` with its reason, or a list of each conversation's `text` or `error`."""
    variables: dict[str, Any] = dict(template.variables)
    if template.today is not None:
        today = date.fromisoformat(template.today)
        variables |= {"strftime_now": today.strftime, "date_string": today.strftime("%d %b %Y")}
    try:
        with _limited():
            render = compile_template(template.source)
    except MemoryError:
        raise
    except Exception as error:
        return "failed", first_line(error)[:200]
    return "done", [_text(render, conversation, variables) for conversation in conversations]


def _text(
    render: Callable[..., str], conversation: Conversation, variables: Mapping[str, Any]
) -> tuple[str, str]:
    try:
        with _limited():
            text = render(**{**variables, **conversation})
    except MemoryError:
        raise
    except Exception as error:
        return "error", first_line(error)[:200]
    given = sum(len(str(turn)) for turn in conversation["messages"])
    given += len(str(conversation.get("tools") or ""))
    if len(text) > 2 * given + OWN_CHARS:
        return "error", f"it writes {len(text):,} characters for a conversation of {given:,}"
    return "text", text


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Processor time until the kernel ends this process."""
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _send(channel: socket.socket, values: object) -> None:
    content = json.dumps(values).encode()
    channel.sendall(HEADER.pack(len(content)) + content)


def _receive(channel: socket.socket) -> Any:
    (size,) = HEADER.unpack(_read(channel, HEADER.size))
    return json.loads(_read(channel, size))


def _read(channel: socket.socket, size: int) -> bytearray:
    """Exactly so many bytes."""
    content = bytearray(size)
    rest = memoryview(content)
    while rest:
        count = channel.recv_into(rest)
        if not count:
            raise EOFError
        rest = rest[count:]
    return content
