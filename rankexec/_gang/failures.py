"""What a settled gang comes to, for its future: the result, or the exception to raise."""

from __future__ import annotations

import sys
from typing import Any

from rankexec._gang.call import Died, Raised, RankInfo
from rankexec._gang.gang import Gang
from rankexec._gang.outcomes import users_part
from rankexec._gang.wire import Packed, unpack
from rankexec._settings import Settings
from rankexec.errors import RankDied, RankRaised, RemoteTraceback

__all__ = ("result_of",)


def result_of(gang: Gang, settings: Settings, infos: list[RankInfo]) -> Any:
    """Return what the future resolves to, or raise what the gang failed of."""
    try:
        if gang.verdict is not None or gang.cause is not None:
            raise _failure(gang, settings, infos)
        if settings.gather is False:
            return _value(gang, settings, 0)
        values = [_value(gang, settings, rank) for rank in range(settings.world_size)]
        return settings.gather(values) if callable(settings.gather) else values
    finally:
        while gang.values:  # those that nobody took
            gang.values.popitem()[1].close()
        gang.caller_value = None


def _value(gang: Gang, settings: Settings, rank: int) -> Any:
    if rank == settings.caller_rank:
        return gang.caller_value
    if rank in gang.refused:
        raise _unpacked(gang.refused[rank])
    packed = gang.values.pop(rank)
    try:
        return unpack(packed)
    except Exception as error:
        _add_note(error, f"while unpickling in the caller what rank {rank} had returned")
        raise
    finally:
        packed.close()


def _failure(gang: Gang, settings: Settings, infos: list[RankInfo]) -> BaseException:
    if gang.verdict is not None:
        error = gang.verdict
    else:
        cause = gang.cause
        info = infos[cause.rank] if cause else None
        if isinstance(cause, Died):
            error = RankDied(
                cause.rank,
                settings.world_size,
                cause.pid,
                cause.host,
                cause.exitcode,
                cause.stderr_tail,
            )
        elif cause is not None and info is not None:
            where = f"rank {cause.rank} of {settings.world_size}, pid {info.pid} on {info.host}"
            error = _exception(cause, where, at_caller=cause.rank == settings.caller_rank)
    for outcome in gang.by_rank:
        if isinstance(outcome, Raised) and isinstance(outcome.exception, Packed):
            outcome.exception = _unpacked(outcome)
    try:
        _set(error, "rank_outcomes", list(gang.by_rank))
    except AttributeError:
        _add_note(error, "rank_outcomes could not be set: the class has something by that name")
    return error


def _exception(raised: Raised, where: str, *, at_caller: bool) -> BaseException:
    if at_caller and isinstance(raised.exception, BaseException):
        error = raised.exception
        _strip_traceback(error)
        _add_note(error, where)
        return error
    error = raised.exception = _unpacked(raised)
    text = raised.traceback_text
    if sys.version_info >= (3, 11):
        _add_note(error, where)
    else:
        text = f"{where}\n{text}"
    _set(error, "__cause__", RemoteTraceback(text))
    return error


def _unpacked(raised: Raised) -> BaseException:
    """Return the exception that a rank raised, or RankRaised where it cannot be had."""
    if isinstance(raised.exception, BaseException):
        return raised.exception
    if isinstance(raised.exception, Packed):
        try:
            error = unpack(raised.exception)
        except BaseException as broken:  # it is the user's code that unpickles it
            raised.text += f" [unpickling it raised {broken!r}]"
        else:
            if isinstance(error, BaseException):
                return error
    return RankRaised(raised.rank, raised.type_name, raised.text, raised.traceback_text)


def _add_note(error: BaseException, note: str) -> None:
    if sys.version_info >= (3, 11):
        notes = getattr(error, "__notes__", [])
        if isinstance(notes, list):  # else the user has made something of his own of it
            _set(error, "__notes__", [*notes, note])


# The class's own way to set attributes may refuse: a frozen dataclass does.
_set = BaseException.__setattr__


def _strip_traceback(error: BaseException) -> None:
    """Begin the traceback with the user's own function, not with our frames around it."""
    _set(error, "__traceback__", users_part(error) or error.__traceback__)
