"""A session's context, entered once for many calls, and (in a child) the ear that hears "halt".

A rank of a session is not ended when its call is over before its time: it is broken off. In a child
a thread listens to the caller while the main thread runs the call.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any

from rankexec._gang.arrived import Arrived
from rankexec._gang.breaking import Breakable
from rankexec._gang.call import Seat, Stage, make_context
from rankexec._gang.channel import Channel
from rankexec._gang.output import warn
from rankexec._gang.restore import OwnGroup, name_groups_afresh
from rankexec._gang.sockets import Spared
from rankexec._gang.wire import Packed

__all__ = ("Ear", "Held")


class Held:
    """A context that stays entered from call to call, until one fails or the stage says to leave.

    Attributes:
        stage: of the present call.
        entered: whether it is entered.
    """

    def __init__(self, context: AbstractContextManager[Any]) -> None:
        self.stage: Stage = "hold"
        self.entered = False
        self.caller_abort: Callable[[], None] | None = getattr(context, "caller_abort", None)
        self._context = context
        self._made = OwnGroup()

    def __enter__(self) -> None:
        if not self.entered and self.stage == "hold":
            name_groups_afresh()  # a failed rendezvous may have left torch's counter anywhere
            with self._made.noted():
                self._context.__enter__()
                self.entered = True
            self._made = OwnGroup()  # to know the group is to keep its threads

    def clean_up(self) -> None:
        """After a call: end the group that was made by an entry broken off before it was whole.

        Not in `__enter__`, where this may be broken off as well.
        """
        if not self.entered:
            self._made.end()

    def leave_alone(self) -> None:
        """Leave, in the caller, when the other ranks are dead."""
        self.stage = "leave"
        try:
            self.__exit__(None, None, None)
        except Exception as error:  # the context's own code; what counts is why the others died
            warn(f"the context of a session whose ranks had died raised {error!r}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.entered and (kind is not None or self.stage == "leave"):
            self.entered = False
            self._context.__exit__(kind, error, traceback)


Message = tuple[str, Any, "Packed | None"]


class Ear:
    """A child's session: its context, and the caller's words, heard by a thread of their own.

    Attributes:
        arrived: what has come from the caller.
    """

    def __init__(self, channel: Channel) -> None:
        self.arrived = Arrived()
        self._held: Held | None = None
        self._spared = Spared(between=False)
        self._channel = channel
        self._heard: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._rank: Breakable | None = None
        self._left = threading.Event()
        threading.Thread(target=self._listen, daemon=True, name="rankexec-ear").start()

    def receive(self) -> Message:
        """Return the next message. Raises EOFError at the end."""
        message = self._heard.get()
        if message is None:
            raise EOFError
        return message

    def hold(self, ctx: Any, stage: Stage) -> Held:
        """Return the context for a call: the one that is entered, else a new one."""
        if self._held is None or not self._held.entered:
            self._held = Held(make_context(ctx))
        self._held.stage = stage
        return self._held

    @contextmanager
    def hearing(self, seat: Seat) -> Iterator[Breakable]:
        """Span a call: a "halt" breaks it off until it has been left."""
        self._rank = Breakable(seat, self._spared)
        self._left.clear()
        try:
            yield self._rank
        finally:
            self._left.set()
            if self._held is not None:
                self._held.clean_up()

    def _listen(self) -> None:
        while True:
            try:
                message = self._channel.receive()
            except (EOFError, OSError):
                self._heard.put(None)
                return
            self._heard.put(message)  # the rank may be waiting for its "go"
            if message[0] == "halt" and self._rank is not None:
                self._rank.break_out()
                self._rank.break_off(self._left.wait)
