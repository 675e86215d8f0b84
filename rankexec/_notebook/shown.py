"""What a cell displays: collected in a rank, kept quiet in the notebook, shown under a heading."""

from __future__ import annotations

import importlib.util
import io
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

from rankexec._gang.streams import flush, put

__all__ = ("Display", "collected", "held_back", "show", "silenced")

Display = dict[str, Any]
"""One output, as IPython's display publishers take it: data, metadata, transient, update."""


class Collector:
    """What this process displays while it is asked for."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._last: list[Display] = []

    def add_value(self, value: Any) -> None:
        """Take the value of the cell's last expression, in every form that a page can show."""
        if value is None:
            return
        if self._shell is None:
            data, metadata = {"text/plain": repr(value)}, {}
        else:
            data, metadata = self._shell.display_formatter.format(value)
        if data:
            self._last = [{"data": data, "metadata": metadata}]

    def finish(self) -> list[Display]:
        """Return all outputs; figures that are still open (matplotlib's) are among them."""
        if self._shell is None:
            return self._last
        publisher = self._shell.display_pub
        value, self._last = self._last, []
        publisher.outputs.extend(value)
        self._shell.events.trigger("post_execute")
        return list(publisher.outputs)


@contextmanager
def collected() -> Iterator[Collector]:
    """Collect what this process displays; it is a rank, without a notebook of its own."""
    if importlib.util.find_spec("IPython") is None:
        yield Collector(None)
        return
    shell = _shell()
    try:
        yield Collector(shell)
    finally:
        type(shell).clear_instance()


def _shell() -> Any:
    """Return a shell that formats and collects; what a prompt needs (history, hooks) it has not.

    `display()` of IPython prints a `repr` where there is no shell at all.
    """
    from IPython.core.displaypub import CapturingDisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import SingletonConfigurable

    class RankShell(InteractiveShell):  # type: ignore[misc]  # IPython is not always installed
        def __init__(self, **options: Any) -> None:
            SingletonConfigurable.__init__(self, **options)
            self.configurables = [self]
            self.user_module = sys.modules["__main__"]
            self.user_ns = vars(self.user_module)
            self.init_events()
            self.init_display_formatter()
            self.display_pub = CapturingDisplayPublisher()

        def showtraceback(self, exc_tuple: Any = None, **_: Any) -> None:
            """Formatters call this when the user's `_repr_html_` raises."""
            traceback.print_exception(*(exc_tuple or sys.exc_info()))

    return RankShell.instance()


def show(rank: int, displays: list[Display], *, heading: bool) -> None:
    """Show in the notebook what a rank has displayed."""
    if not displays:
        return
    from IPython.display import publish_display_data

    if heading:
        name = f"rank {rank}"
        publish_display_data({"text/plain": f"{name}:", "text/html": f"<b>{name}</b>"})
    for display in displays:
        options = {k: display[k] for k in ("transient", "update") if display.get(k)}
        publish_display_data(display["data"], display.get("metadata") or {}, **options)


@contextmanager
def silenced() -> Iterator[None]:
    """Drop what this thread prints and displays in the notebook.

    Other threads print on: the one that passes on what the other ranks print is among them.
    """
    from IPython.utils.capture import capture_output

    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(_Silenced(sys.stdout)))
        stack.enter_context(redirect_stderr(_Silenced(sys.stderr)))
        stack.enter_context(capture_output(stdout=False, stderr=False))
        yield


@contextmanager
def held_back() -> Iterator[None]:
    """Print at the end what is printed in the notebook meanwhile, by any thread."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            yield
    finally:
        put(sys.stdout, out.getvalue())
        put(sys.stderr, err.getvalue())


class _Silenced(io.TextIOBase):
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() == self._thread:
            return len(text)
        return self._stream.write(text)

    def flush(self) -> None:
        flush(self._stream)

    def fileno(self) -> int:
        return self._stream.fileno()
