"""The rank process: started by the guardian, talks to the caller over one channel.

    python -c ... main(channel, stacks, guardian, news)

    channel    descriptor of the connection to the caller
    stacks     descriptor to which the stacks of all threads go when STACKS_SIGNAL comes
    guardian   pid of the parent; this process dies with it
    news       descriptor on which it is told of resource trackers, see `trackers`

From the caller: ("prepare", (data, environment)), then for every call ("call", (seat, imports,
wants_value, stage), packed call), then "go" when all ranks are ready; "halt" breaks the call of a
session off; "leave", or the end of the connection.
To the caller: ("ready", (info, None)); from inside the context ("returned", (info, when), packed
value) or ("raised", (info, None), packed description), in a session ("refused", ...) for a value
that cannot travel; at last ("left", (info, kept), packed description or None), `kept` being what a
rank of a session has since the call (`sets.Kept`); at the end of a process that has threads to wait
for, ("waits", their names by ident). A call that does not unpack has raised without having been
ready; one that was broken off has only left.

A fork of the guardian begins with `serve`, and is told its environment; else that is None.
"""

from __future__ import annotations

import atexit
import faulthandler
import importlib.machinery
import io
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import process as twin_process
from typing import Any, TypeAlias

from multiprocess import spawn

from rankexec._gang import libc, output, sockets
from rankexec._gang.call import Call, RankInfo, Seat
from rankexec._gang.channel import Channel
from rankexec._gang.child import ChildRank
from rankexec._gang.finish import flush_files
from rankexec._gang.held import Ear
from rankexec._gang.line import Line
from rankexec._gang.sets import NOTHING
from rankexec._gang.surroundings import take_over
from rankexec._gang.trackers import prepare_trackers
from rankexec._gang.wire import pack_result

__all__ = (
    "STACKS_SIGNAL",
    "TOKEN_BYTES",
    "die_with",
    "main",
    "main_unguarded",
    "rehearse",
    "serve",
)

TOKEN_BYTES = 32

GIVE_WAY_SECONDS = 0.0003
"""How long a rank that may go waits. Its end takes a core for 2 ms, just when the caller's thread
that waits for the result is to wake up on it."""

# A real-time signal: frameworks and users have their own ideas about SIGUSR1 and SIGUSR2.
# Windows has neither, and no local launcher.
STACKS_SIGNAL: int = (
    signal.SIGRTMIN + 11 if hasattr(signal, "SIGRTMIN") else getattr(signal, "SIGUSR2", 0)
)


TakeEnvironment: TypeAlias = Callable[[Mapping[str, str]], None]


def main(channel: int, stacks: int, guardian: int, news: int) -> None:
    """Serve the caller's calls, then end."""
    die_with(guardian)
    atexit.register(flush_files)  # the first is the last
    prepare_trackers(news)
    serve(Channel(Line(channel)), stacks)


def serve(channel: Channel, stacks: int, take_environment: TakeEnvironment | None = None) -> None:
    """Do so in a process that dies with the guardian; it may have to wait for the first message.

    Args:
        channel: to the caller.
        stacks: a descriptor, see above.
        take_environment: called with the environment that this process is to have; None: it is
            there.
    """
    faulthandler.register(STACKS_SIGNAL, file=stacks, all_threads=True)
    _talk(channel, take_environment)
    time.sleep(GIVE_WAY_SECONDS)
    _tell_threads(channel)


def main_unguarded(port: int) -> None:
    """Do the same for a caller that hands down no descriptors, and on whom nobody looks after us.

    Tokens come by stdin; with each a connection is made to `port`: the channel, and a line on which
    the caller asks for stacks, and whose end is the caller's.
    """
    atexit.register(flush_files)
    atexit.register(_end_children)  # when its threads, which may need them, have ended
    connections = []
    for _ in range(2):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(sys.stdin.buffer.read(TOKEN_BYTES), sockets.NO_SIGNAL)
        connections.append(connection)
    channel, line = connections
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    threading.Thread(target=_watch, args=(line,), daemon=True, name="rankexec-watch").start()
    sockets.PASSES_FILES = False
    last = Channel(Line(channel.detach()))
    _talk(last)
    _tell_threads(last)


def rehearse(take_environment: TakeEnvironment) -> None:
    """Serve an empty call that this process sends itself, and leave."""
    ours, theirs = (Channel(Line(end.detach())) for end in socket.socketpair())
    preparation = spawn.get_preparation_data("rank")
    authkey = bytes(preparation["authkey"])
    preparation.update(umask=0o077, authkey=authkey, twin_authkey=authkey)
    preparation.update(surroundings=None)
    preparation.update(main=(None, None, None), twin_start_method=None)
    seat = Seat(0, 1, "", 0, 0, 1)
    ours.send("prepare", (preparation, {**os.environ, **seat.environment()}))
    call = pack_result(Call(int, (), {}, None, {}), frozenset())
    ours.send("call", (seat, "", False, "once", NOTHING), call)
    ours.send("go")
    ours.send("leave")
    _talk(theirs, take_environment)
    ours.close()
    theirs.close()


def _watch(line: socket.socket) -> None:
    """Answer with the stacks of all threads; end with the caller."""
    with suppress(ConnectionError):
        while line.recv(1):
            line.sendall(_stacks().encode("utf-8", "backslashreplace"), sockets.NO_SIGNAL)
    _end_children()
    os._exit(1)


def _tell_threads(channel: Channel) -> None:
    """Tell the caller, who may have to say it, what threads the end of this process waits for."""
    waits = {t.ident: t.name for t in threading.enumerate() if not t.daemon}
    if len(waits) > 1:
        with suppress(OSError):
            channel.send("waits", waits)


def _stacks() -> str:
    frames = sys._current_frames()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"Thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in frames.items()
    )


def _end_children() -> None:
    import psutil  # nobody else needs it here

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()


def _talk(channel: Channel, take_environment: TakeEnvironment | None = None) -> None:
    with suppress(EOFError, ConnectionError):  # the caller has nothing more to say
        _, (preparation, environment), _ = channel.receive()
        began = time.monotonic()
        if take_environment is not None:
            take_environment(environment)
        _prepare(preparation)
        _serve(channel, began)
    output.flush()


def die_with(guardian: int) -> None:
    """Let the kernel end this process with its parent; keep orphans of ours below us till then."""
    libc.die_with_parent(signal.SIGKILL)
    libc.become_subreaper()
    if os.getppid() != guardian:  # it died before the kernel knew
        os._exit(1)


def _prepare(preparation: dict[str, Any]) -> None:
    """Take over sys.path, cwd, argv of the caller; never its `__main__`, which is not run again."""
    if (theirs := preparation.pop("surroundings")) is not None:
        take_over(theirs)
    _make_main(*preparation.pop("main"))
    os.umask(preparation.pop("umask"))
    # Of the library of which multiprocess is a copy: managers of either ask for it.
    twin_process.current_process().authkey = preparation.pop("twin_authkey")
    if (method := preparation.pop("twin_start_method")) is not None:
        multiprocessing.set_start_method(method, force=True)
    spawn.prepare(preparation)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _make_main(spec: str | None, package: str | None, file: str | None) -> None:
    """Make a `__main__` that is the caller's by name, and empty.

    What it defines comes with the calls. Functions in it import by these names, and processes that
    the rank starts find the program by them.
    """
    main = sys.modules["__main__"] = sys.modules["__mp_main__"] = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    main.__package__ = package
    if spec is not None:
        main.__spec__ = importlib.machinery.ModuleSpec(spec, None, origin=file)
    if file is not None:
        main.__file__ = os.path.abspath(file)


def _serve(channel: Channel, began: float) -> None:
    ear: Ear | None = None
    while True:
        kind, details, packed = (ear or channel).receive()
        if kind == "leave":
            return
        if kind == "halt":  # its call has been left meanwhile
            continue
        seat, imports, wants_value, stage, sets = details
        if stage != "once" and ear is None:
            ear = Ear(channel)
        # The guardian says it too, but it may be slower than a short call.
        info = RankInfo(seat.rank, pid=os.getpid(), started=began)
        ChildRank(channel, ear, seat, info, wants_value, stage, sets).run(imports, packed)
        output.flush()
