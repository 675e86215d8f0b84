"""The call on its way out: packed once for all ranks, and named if it cannot be."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from types import ModuleType

from rankexec._gang import refusals
from rankexec._gang.absent import Stays
from rankexec._gang.call import Call
from rankexec._gang.descriptors import Beside, collecting
from rankexec._gang.modules import registered
from rankexec._gang.names import Going
from rankexec._gang.naming import name_of, place
from rankexec._gang.owned import pack_owned
from rankexec._gang.replay import Frame, find_refused
from rankexec._gang.wire import Packed, pack
from rankexec.errors import NotShippable

__all__ = ("pack_call",)


def pack_call(
    call: Call, by_value: Sequence[ModuleType] = (), going: Going | None = None
) -> Packed:
    """Pack a call for its children; the code of modules `by_value` goes with it.

    Args:
        call: the call.
        by_value: modules whose code travels.
        going: of a session, which names of `__main__` travel.

    Raises:
        NotShippable: something in it cannot be pickled; names the argument or variable, and the
            path from there.
    """
    _refuse_passed(call)
    with registered(by_value), collecting() as beside:
        try:
            packed = pack(call) if going is None else pack_owned(call, going)
            return _with_boxes(packed, beside)
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:  # the user's __reduce__ may raise anything
            refused = _refusal(call, going, error)
    raise refused  # here it has no chain of causes, which would say the same in pickle's words


def _refuse_passed(call: Call) -> None:
    """Refuse what stays here if it is passed itself: it is not just dragged along."""
    for holder, values in ((call.args, call.args), (call.kwargs, call.kwargs.values())):
        for obj in values:
            if isinstance(obj, Stays):
                frames = [Frame(call), Frame(vars(call)), Frame(holder), Frame(obj)]
                raise NotShippable(_what(frames), obj._stays)


def _with_boxes(packed: Packed, beside: Beside) -> Packed:
    try:
        packed.boxes = beside.boxes()  # if there were two attempts, of both: no harm in too many
    except BaseException:  # at the limit of open files
        packed.close()
        raise
    return packed


def _refusal(call: Call, going: Going | None, error: BaseException) -> NotShippable:
    frames, found = find_refused(call, going)
    error = found or error
    if not frames:  # it pickled this time
        return NotShippable(f"the call of {name_of(call.fn)}", _reason(error))
    advice = _advice(error) or refusals.advice(frames[-1].obj)
    return NotShippable(_what(frames), _reason(error), advice)


def _what(frames: list[Frame]) -> str:
    return f"{place(frames)} (a {type(frames[-1].obj).__qualname__})"


def _advice(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return (
            "raise the limit (ulimit -n), or share by names: "
            'torch.multiprocessing.set_sharing_strategy("file_system")'
        )
    return getattr(error, "advice", "")


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return repr(error) if isinstance(error, SystemExit) else str(error) or repr(error)
