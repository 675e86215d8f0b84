"""Python's limit of recursion: the caller's in its ranks, and a higher one for deep values."""

from __future__ import annotations

import contextvars
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from rankexec._gang import descriptors

__all__ = ("deeply", "in_caller_of_deeply", "take_limit")

T = TypeVar("T")

DEEPEST = 20_000
"""Calls within each other: pickling makes three or four of them for each value within another."""
_STACK = 256 << 20
"""Bytes of address space: no more is taken than is used. The user's code may be in each call."""
_limit: int | None = None
_deepening = threading.RLock()
_here = threading.local()


def take_limit(limit: int) -> None:
    """Take over the caller's limit, unless it is what it was when it was taken over last."""
    global _limit  # noqa: PLW0603  # the limit is the process's
    if limit != _limit:
        _limit = limit
        with suppress(RecursionError):  # this rank stands deeper than that already
            sys.setrecursionlimit(limit)


def deeply(run: Callable[[], T]) -> T:
    """Run with a high limit. Before 3.12 that takes C stack, and so a thread with more of it."""
    with _deep():
        return run() if sys.version_info >= (3, 12) else _in_a_thread(run)


@contextmanager
def _deep() -> Iterator[None]:
    with _deepening:  # the limit is the process's, and each thread puts back what it has found
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(max(limit, DEEPEST))
        try:
            yield
        finally:
            sys.setrecursionlimit(limit)


def _in_a_thread(run: Callable[[], T]) -> T:
    """Run in a thread, which asks this one for what only this one knows: see below."""
    taking, context = descriptors.beside(), contextvars.copy_context()
    questions: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        _here.questions = questions
        try:
            with descriptors.taking(taking):
                results.append(context.run(run))
        except BaseException as error:  # raised again below
            errors.append(error)
        questions.put(None)

    before = threading.stack_size(_STACK)
    try:
        thread = threading.Thread(target=work, name="rankexec-deep", daemon=True)
        thread.start()
    finally:
        threading.stack_size(before)
    _answer(questions, errors)
    thread.join()
    if errors:
        raise errors.pop()
    return results.pop()


def _answer(
    questions: queue.SimpleQueue[Callable[[], None] | None], errors: list[BaseException]
) -> None:
    """Answer until there is nothing more to ask, also after a Ctrl-C: the thread ends by itself."""
    while True:
        try:
            question = questions.get()
            if question is None:
                return
            question()
        except KeyboardInterrupt as error:
            errors.append(error)


def in_caller_of_deeply(reduce: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a reducer that asks the thread that has called `deeply` for its own values."""
    questions = getattr(_here, "questions", None)
    if questions is None:
        return reduce

    def ask(obj: Any) -> Any:
        if not isinstance(obj, threading.local):
            return reduce(obj)
        answer: Future[Any] = Future()

        def question() -> None:
            try:
                answer.set_result(reduce(obj))
            except BaseException as error:  # raised again where it was asked
                answer.set_exception(error)

        questions.put(question)
        return answer.result()

    return ask
