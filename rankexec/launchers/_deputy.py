"""The guardian's deputy: a fork of it, which serves the caller while the guardian itself imports.

What takes long to import, and not every rank needs, delays no gang that way, and no news of a
rank's end. Ranks that the deputy forks have to import it themselves. When the guardian has it, the
deputy hears no more of the caller and only sees its own ranks to their end. A deputy that ends
before that takes the guardian with it: the caller may have closed it, and its socket may stand in
the midst of a message.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from rankexec._gang.line import Line
from rankexec._gang.output import warn
from rankexec._gang.sockets import close_all
from rankexec._gang.worker import die_with
from rankexec.errors import PreloadError
from rankexec.launchers._ranks import kill_strays

__all__ = ("Deputy", "appoint")


def appoint(serve: Callable[[Line], None]) -> Deputy:
    """Fork the deputy from this process, the guardian.

    Args:
        serve: called in the fork, with a line to the guardian.

    Raises:
        OSError: no process or descriptor is left.
    """
    guardian = os.getpid()
    ours, theirs = (own.detach() for own in socket.socketpair())
    try:
        pid = os.fork()
    except OSError:
        close_all((ours, theirs))
        raise
    if pid == 0:
        try:
            die_with(guardian)
            os.close(ours)
            serve(Line(theirs))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(theirs)
    return Deputy(pid, Line(ours))


class Deputy:
    """The guardian's handle on it."""

    def __init__(self, pid: int, line: Line) -> None:
        self.pid = pid
        self._line = line

    def tell(self, *message: Any) -> None:
        """Tell it something, if it is still there."""
        with suppress(OSError):
            self._line.send(pickle.dumps(message))

    def close(self) -> None:
        """In a fork: close the line to it."""
        self._line.close()

    def relieve(self, work: Callable[[], None]) -> Any:
        """Work while it serves, then have it stop; return what it hands over.

        Does not return if it ends before that, nor where the work raises PreloadError: then it
        serves for good.
        """
        handlers = {signal.SIGCHLD: self._on_child, signal.SIGTERM: self._end}
        previous = {number: signal.signal(number, handlers[number]) for number in handlers}
        self._on_child()  # it may have ended before
        try:
            work()
        except PreloadError as error:
            warn(f"{error}; ranks import that themselves, if they need it")
            while True:
                signal.pause()
        # Before it is told: without ranks it ends at once, and has done all that it was to do.
        signal.signal(signal.SIGCHLD, previous[signal.SIGCHLD])
        self.tell("relieved")
        try:
            handed_over = pickle.loads(self._line.receive()[0])
        except (EOFError, OSError):  # it has ended before that
            self._end()
        signal.signal(signal.SIGTERM, previous[signal.SIGTERM])
        return handed_over

    def _on_child(self, *_: object) -> None:
        with suppress(ChildProcessError):  # that is when we are leaving
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                self._leave()

    def _end(self, *_: object) -> NoReturn:
        with suppress(ChildProcessError, ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self._leave()

    def _leave(self) -> NoReturn:
        kill_strays()  # of ranks that have died with it; there are none if it has left by itself
        os._exit(0)
