"""The rank process: started by the guardian, talks to the caller over one channel.

    python -c ... main(channel, stacks, guardian)

    channel    descriptor of the connection to the caller
    stacks     descriptor to which the stacks of all threads go when STACKS_SIGNAL comes
    guardian   pid of the parent; this process dies with it

From the caller: ("prepare", data), then for every call ("call", (seat, imports, wants_value),
packed call), then "go" when all ranks are ready; "leave", or the end of the connection.
To the caller: ("ready", info); from inside the context ("returned", (when, info), packed value) or
("raised", info, packed description); at last ("left", info, packed description or None). A call
that does not unpack has raised without having been ready.
"""

from __future__ import annotations

import faulthandler
import io
import os
import signal
import socket
import sys
import threading
import time
import traceback
import types
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any

from multiprocess import spawn
from multiprocess.connection import Connection

from rankexec._gang import libc, namespace, outcomes, output, sockets, tensors
from rankexec._gang.call import Call, RankInfo, Seat, make_context, perform
from rankexec._gang.channel import Channel
from rankexec._gang.picklers import caller_classes, is_known_to_caller
from rankexec._gang.wire import Packed, pack_result, unpack
from rankexec.errors import NotShippable

__all__ = ("STACKS_SIGNAL", "TOKEN_BYTES", "die_with", "main", "main_unguarded")

TOKEN_BYTES = 32

# A real-time signal: frameworks and users have their own ideas about SIGUSR1 and SIGUSR2.
# Windows has neither, and no local launcher.
STACKS_SIGNAL: int = (
    signal.SIGRTMIN + 11 if hasattr(signal, "SIGRTMIN") else getattr(signal, "SIGUSR2", 0)
)


def main(channel: int, stacks: int, guardian: int) -> None:
    """Serve the caller's calls, then end."""
    began = time.monotonic()
    die_with(guardian)
    faulthandler.register(STACKS_SIGNAL, file=stacks, all_threads=True)
    _talk(Channel(Connection(channel)), began)


def main_unguarded(port: int) -> None:
    """Do the same for a caller that hands down no descriptors, and on whom nobody looks after us.

    Tokens come by stdin; with each a connection is made to `port`: the channel, and a line on which
    the caller asks for stacks, and whose end is the caller's.
    """
    began = time.monotonic()
    connections = []
    for _ in range(2):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(sys.stdin.buffer.read(TOKEN_BYTES))
        connections.append(connection)
    channel, line = connections
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    threading.Thread(target=_watch, args=(line,), daemon=True, name="rankexec-watch").start()
    sockets.PASSES_FILES = False
    _talk(Channel(Connection(channel.detach())), began)
    _end_children()


def _watch(line: socket.socket) -> None:
    """Answer with the stacks of all threads; end with the caller."""
    with suppress(ConnectionError):
        while line.recv(1):
            line.sendall(_stacks().encode("utf-8", "backslashreplace"))
    _end_children()
    os._exit(1)


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


def _talk(channel: Channel, began: float) -> None:
    with suppress(EOFError, ConnectionError):  # the caller has nothing more to say
        _, preparation, _ = channel.receive()
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
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.modules["__main__"].__dict__["__builtins__"] = __builtins__
    os.umask(preparation.pop("umask"))
    spawn.prepare(preparation)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _serve(channel: Channel, began: float) -> None:
    while True:
        kind, details, packed = channel.receive()
        if kind == "leave":
            return
        seat, imports, wants_value = details
        # The guardian says it too, but it may be slower than a short call.
        info = RankInfo(seat.rank, pid=os.getpid(), started=began)
        _run_call(channel, seat, info, imports, wants_value, packed)
        output.flush()


def _run_call(
    channel: Channel,
    seat: Seat,
    info: RankInfo,
    imports: str,
    wants_value: bool,
    packed: Packed | None,
) -> None:
    tensors.is_rank(seat.local_rank, seat.local_world_size)
    try:
        call = _unpack_call(imports, packed)
        context = make_context(call.ctx)
    except BaseException as error:
        _report(channel, info, error, None)
        channel.send("left", info)
        return
    info.ready = time.monotonic()
    channel.send("ready", info)
    if channel.receive()[0] != "go":
        return
    leaving = perform(
        call,
        context,
        nullcontext(),
        lambda error, value: _report(channel, info, error, value if wants_value else None),
        info,
    )
    output.flush()  # before "left": the caller reads what is there, then resolves the future
    if leaving is None:
        channel.send("left", info)
    else:
        packed = _pack_raised(seat.rank, time.monotonic(), leaving)
        channel.send("left", info, packed)
        packed.close()


def _unpack_call(imports: str, packed: Packed | None) -> Call:
    # First the imports: libraries patch classes on import, and unpickling needs the patched ones.
    namespace.run_imports(imports)
    if packed is None:
        raise EOFError("a call came without its content")
    try:
        call: Call = unpack(packed)
    finally:
        packed.close()
    namespace.set_in_main(call.needed)
    return call


def _report(channel: Channel, info: RankInfo, error: BaseException | None, value: Any) -> None:
    output.flush()
    when = info.fn_left or time.monotonic()
    if error is None:
        try:
            packed = pack_result(value, caller_classes())
        except Exception as refused:  # the user's __reduce__ may raise anything
            what = f"the result of rank {info.rank} (a {type(value).__name__})"
            advice = "return plain data: numbers, arrays, a state_dict"
            if isinstance(refused, OSError):  # a limit of descriptors, or of a file's size
                advice = "the system refused, whatever the result is"
            error = NotShippable(what, str(refused), advice)
        else:
            channel.send("returned", (when, info), packed)
            packed.close()
            return
    packed = _pack_raised(info.rank, when, error)
    channel.send("raised", info, packed)
    packed.close()


def _pack_raised(rank: int, when: float, error: BaseException) -> Packed:
    """Pack a description that always unpacks, and within it, apart, the exception if possible."""
    raised = outcomes.describe(rank, when, error)
    inner: Packed | None = None
    if is_known_to_caller(type(error)):
        with suppress(Exception):  # then the caller gets RankRaised, with all texts
            inner = pack_result(error.with_traceback(None), caller_classes(), inline=True)
    return pack_result((replace(raised, exception=None), inner), caller_classes())
