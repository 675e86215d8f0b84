"""What holds for one process: locks, a thread's values, weak references, a process's own objects.

Whoever holds a lock or waits for it in the caller is not in the rank, so they arrive new.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ("choose", "choose_own")


def choose(cls: type) -> Callable[[Any], Any] | None:
    """Return the reducer for instances of `cls`, or None if they are of no such kind."""
    if issubclass(cls, threading.local):
        return _thread_local
    if issubclass(cls, weakref.ref):
        return _weak_reference
    bars: Any = sys.modules.get("tqdm.std")
    if bars is not None and issubclass(cls, bars.tqdm):
        return _bar
    return _REDUCERS.get(cls)


def choose_own(cls: type) -> Callable[[Any], Any] | None:
    """Return the reducer for what every process has its own of; a result is meant as a copy."""
    if cls.__module__ == "numpy.random.mtrand":
        return _numpy_generator
    if cls.__module__ == "accelerate.state" and hasattr(cls, "_shared_state"):
        return _accelerate_state
    return _OWN.get(cls)


def _lock(_: Any) -> Any:
    return threading.Lock, ()


def _rlock(_: Any) -> Any:
    return threading.RLock, ()


def _condition(condition: Any) -> Any:
    """Without those who wait; queues have three around one lock."""
    return threading.Condition, (condition._lock,)


def _bounded_semaphore(semaphore: Any) -> Any:
    return threading.BoundedSemaphore, (semaphore._initial_value,)


def _thread_local(local: threading.local) -> Any:
    """The values that it has in this thread."""
    return _local_again, (type(local),), dict(vars(local))


def _local_again(cls: type[threading.local]) -> threading.local:
    return cls.__new__(cls)


def _bar(bar: Any) -> Any:
    """A bar of tqdm's, switched off: it is shown here, and drawn by threads and locks of here."""
    kept = {name: getattr(bar, name) for name in ("iterable", "total", "n", "leave")}
    return object.__new__, (type(bar),), {**kept, "pos": 0, "disable": True}


# --- weak: what nothing else holds in the rank is gone there ---


def _weak_reference(reference: Any) -> Any:
    target = reference()
    if target is None:
        return _dead_reference, ()
    if isinstance(reference, weakref.WeakMethod):
        return weakref.WeakMethod, (target,)
    if reference.__callback__ is None:
        return weakref.ref, (target,)
    return weakref.ref, (target, reference.__callback__)


def _dead_reference() -> Any:
    return weakref.ref(set())


def _weak_proxy(proxy: Any) -> Any:
    return weakref.proxy, (proxy.__repr__.__self__,)


def _weak_mapping(mapping: Any) -> Any:
    return type(mapping), (), None, None, iter(list(mapping.items()))


# --- every process has its own: `from os import environ`, `from random import random` ---


def _environ(environ: Any) -> Any:
    return (getattr, (os, "environ")) if environ is os.environ else NotImplemented


def _generator(generator: random.Random) -> Any:
    """The one behind `random.random`: a copy would draw the same numbers on every rank."""
    ours = random._inst  # its methods are the module's functions
    return (getattr, (random, "_inst")) if generator is ours else NotImplemented


def _numpy_generator(generator: Any) -> Any:
    """The one behind `numpy.random.rand`."""
    mtrand = sys.modules["numpy.random.mtrand"]
    return (getattr, (mtrand, "_rand")) if generator is mtrand._rand else NotImplemented


def _accelerate_state(state: Any) -> Any:
    """What accelerate knows of its process: with a copy, ranks would quietly train alone."""
    return _accelerate_state_again, (type(state),)


def _accelerate_state_again(cls: Any) -> Any:
    state = cls.__new__(cls)
    state.__dict__ = cls._shared_state
    return state


_REDUCERS: dict[type, Callable[[Any], Any]] = {
    type(threading.Lock()): _lock,
    type(threading.RLock()): _rlock,
    threading.Condition: _condition,
    threading.BoundedSemaphore: _bounded_semaphore,
    weakref.ProxyType: _weak_proxy,
    weakref.CallableProxyType: _weak_proxy,
    weakref.WeakKeyDictionary: _weak_mapping,
    weakref.WeakValueDictionary: _weak_mapping,
}
"""By exact type."""
_OWN = {type(os.environ): _environ, random.Random: _generator}
