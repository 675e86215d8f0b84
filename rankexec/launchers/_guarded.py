"""The caller's handles on its guardian processes."""

from __future__ import annotations

import os
import pickle
import socket
import threading
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from rankexec.launchers._command import command_for
from rankexec.launchers._ends import close_all, offers_socket, pidfd, receive_ends
from rankexec.launchers._kinds import Kind, kind_of

__all__ = ("GUARDIANS", "Guardian")

_CLOSE_SECONDS = 10.0
_TERMINATE_SECONDS = 1.0


class Guardian:
    """The caller's handle on one guardian process. Its methods are for any thread."""

    def __init__(self, environment: Mapping[str, str], preload: Sequence[str] | None) -> None:
        """Start it, in the background; with `preload`, ranks can be forked from it."""
        import subprocess  # takes as long as a tenth of rankexec

        from rankexec._gang.line import Line  # brings multiprocess and dill along
        from rankexec._gang.surroundings import surroundings

        self._lock = threading.RLock()  # a finalizer of this thread may tell it something
        self._told: deque[tuple[Any, ...]] = deque()
        self._starting = False
        self.running = 0
        """Ranks that were started and have not ended."""
        self._used = False
        self._parks_for: weakref.WeakSet[Any] = weakref.WeakSet()  # launchers
        command = command_for("rankexec.launchers._guardian")
        with ExitStack() as ours, ExitStack() as theirs:
            own, control = socket.socketpair()
            self._control = Line(own.detach())
            ours.callback(self._control.close)
            theirs.callback(control.close)
            self._offered, offers = offers_socket()
            ours.callback(self._offered.close)
            theirs.callback(offers.close)
            caller = pidfd(os.getpid())
            theirs.callback(close_all, [caller])
            fds = [control.fileno(), caller, self._offered.fileno(), offers.fileno()]
            self.began_in = surroundings()
            self._process = subprocess.Popen(
                [*command[:-1], *map(str, fds), command[-1]],
                env=environment,
                pass_fds=[fd for fd in fds if fd >= 0],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C in the terminal is for the caller alone
            )
            ours.pop_all()
        if preload is not None:
            named = [name for name in preload if name not in LATER]
            self.tell("preload", named, [name for name in preload if name in LATER])

    def alive(self) -> bool:
        """Return whether the process is there."""
        with self._lock:
            return self._process.poll() is None

    def start(self, fds: list[int], *details: Any) -> None:
        """Have it start a rank. Raises ConnectionError if it is gone."""
        with self._lock:
            if self._control.closed:  # another thread has found it dead
                raise ConnectionResetError("the guardian is gone")
            self._starting = True
            try:
                self._control.send(pickle.dumps(("start", *details)), fds)
            finally:
                self._starting = False
            self.running += 1
            self._say()

    def take(self) -> tuple[int, list[int]] | None:
        """Return the key and our ends of a rank that it has forked ahead, if there is one."""
        with self._lock:
            offer = receive_ends(self._offered)
            self.running += offer is not None
        return offer

    def is_gone(self) -> bool:
        """Return whether it has closed its end: when it dies, before its ranks do."""
        with self._lock:
            return bool(self._control.closed or self._control.poll())  # it never says anything

    def park(self, launcher: Any, count: int, seconds: float, taken: Sequence[int]) -> None:
        """Have it fork so many ahead for a launcher, which has taken those with these keys."""
        self._parks_for.add(launcher)
        self.tell("park", count, seconds, taken)

    def park_no_more(self, launcher: Any) -> None:
        """Have it end what is forked ahead, if no other launcher wants that."""
        if launcher in self._parks_for:
            self._parks_for.discard(launcher)
            if not self._parks_for:
                self.tell("park", 0, 0.0, ())

    def tell(self, *message: Any) -> None:
        """Tell it something; nothing happens if it is gone, for then so are its ranks."""
        with self._lock:
            self._told.append(message)
            if not self._starting:  # else this thread may be in the midst of that message
                self._say()

    def _say(self) -> None:
        while self._told:
            with suppress(OSError):
                self._control.send(pickle.dumps(self._told.popleft()))

    def has_ranks(self) -> None:
        """Note that one of its ranks has been started."""
        with self._lock:
            self._used = True

    def ended(self) -> None:
        """Note that one of its ranks has ended."""
        with self._lock:
            self.running -= 1

    def close(self) -> None:
        """End it, and every rank that it still has."""
        from subprocess import TimeoutExpired

        self.tell("close")
        with self._lock:
            self._control.close()
            self._offered.close()
            seconds = _CLOSE_SECONDS
            # Where the caller was somebody else when it started it, it hears what it is told.
            with suppress(PermissionError):
                if not self._used:  # it has nothing to put in order, and may be importing torch
                    self._process.terminate()
                    seconds = _TERMINATE_SECONDS
            try:
                self._process.wait(seconds)
            except TimeoutExpired:
                with suppress(PermissionError):
                    self._process.kill()
                    self._process.wait()

    def forget(self) -> None:
        """In a forked child: it is the parent's."""
        self._control.close()
        self._offered.close()
        self._process.returncode = 0  # or its __del__ would complain, and poll our children


class Guardians:
    """The guardians of this process, by what they were started with; counted by leases."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._leases = 0
        self._by_key: dict[Kind, Guardian] = {}  # the least recently used first

    def lease(self) -> None:
        """Be needed once more."""
        with self._lock:
            self._leases += 1

    def release(self) -> None:
        """Be needed once less; with the last lease all guardians end."""
        with self._lock:
            self._leases -= 1
            if self._leases == 0:
                self.close()

    def close(self) -> None:
        """End all guardians; new ones start when needed."""
        with self._lock:
            while self._by_key:
                self._by_key.popitem()[1].close()

    def get(
        self,
        privileges: tuple[Any, ...],
        environment: Mapping[str, str],
        preload: Sequence[str] | None,
    ) -> Guardian:
        """Return a living guardian for ranks like that; start it if there is none."""
        key = kind_of(privileges, environment, preload)
        with self._lock:
            guardian = self._by_key.pop(key, None)
            if guardian is not None and not guardian.alive():
                guardian.close()
                guardian = None
            if guardian is None:
                guardian = Guardian(environment, preload)
            self._by_key[key] = guardian
            self._close_unused(privileges)
            return guardian

    def park_no_more(self, launcher: Any) -> None:
        """Have all of them end what is forked ahead for this launcher alone."""
        with self._lock:
            for guardian in self._by_key.values():
                guardian.park_no_more(launcher)

    def discard(self, guardian: Guardian) -> None:
        """End a guardian that is of no use."""
        with self._lock:
            for key, known in list(self._by_key.items()):
                if known is guardian:
                    del self._by_key[key]
                    guardian.close()

    def _close_unused(self, privileges: tuple[Any, ...]) -> None:
        known = list(self._by_key.items())
        for key, guardian in known:
            # It does what it is told: a caller that was root is to have none that still is.
            kept = key.privileges == privileges and (key, guardian) in known[-_KEPT:]
            if not kept and guardian.running == 0:
                del self._by_key[key]
                guardian.close()

    def forget(self) -> None:
        """In a forked child: the guardians are the parent's, not ours."""
        for guardian in self._by_key.values():
            guardian.forget()
        self._lock = threading.RLock()
        self._leases = 0
        self._by_key = {}


_KEPT = 2

LATER = frozenset({"torch._dynamo"})
"""Takes half as long to import as torch, and not every rank needs it: no gang waits for it."""

GUARDIANS = Guardians()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=GUARDIANS.forget)
