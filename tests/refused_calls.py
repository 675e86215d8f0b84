"""System calls that fail, in this process and all that it starts: a seccomp profile (x86-64)."""

from __future__ import annotations

import ctypes
import os
import struct

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_CALL_AT, _FIRST_ARGUMENT_AT = 0, 16
_FAIL, _ALLOW = 0x00050000, 0x7FFF0000


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def refuse(call: tuple[int, int | None], error: int) -> None:
    """Have a system call fail with an error.

    Args:
        call: its number, and its first argument; None: any.
        error: the errno.
    """
    number, argument = call
    wanted = [(_CALL_AT, number)] + ([] if argument is None else [(_FIRST_ARGUMENT_AT, argument)])
    steps = []
    for at, value in wanted:
        skipped = 2 * (len(wanted) - len(steps) // 2) - 1  # to the last one
        steps += [(_LOAD, 0, 0, at), (_JUMP_IF_EQUAL, 0, skipped, value)]
    steps += [(_RETURN, 0, 0, _FAIL | error), (_RETURN, 0, 0, _ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = _Program(len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0
    ):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
