"""The IPython extension: `%load_ext rankexec`, then `%ranks`, `%%ranked` and `%autoranked`.

It keeps one RankedExecutor for the notebook and hands it cells. IPython is imported by whoever
loads it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from rankexec._gang.outcomes import users_part
from rankexec._notebook import options
from rankexec._notebook.autoranked import AutoRanked
from rankexec._notebook.cell import Asked, Cell, CellResult, Source
from rankexec._notebook.shown import show
from rankexec._notebook.syntax import ends_silently, has_await
from rankexec._notebook.table import Table
from rankexec.contexts import TorchDDPCtx
from rankexec.executor import RankedExecutor, RankedFuture
from rankexec.launchers.local import LocalLauncher

__all__ = ("Notebook", "load_ipython_extension", "unload_ipython_extension")


def load_ipython_extension(shell: Any) -> None:
    """Add the magics to a shell; `%load_ext rankexec` calls this."""
    unload_ipython_extension(shell)
    _loaded[id(shell)] = Notebook(shell)


def unload_ipython_extension(shell: Any) -> None:
    """End the notebook's gang and take the magics away; `%unload_ext rankexec` calls this."""
    if id(shell) in _loaded:
        _loaded.pop(id(shell)).unload()


class Notebook:
    """A notebook's gang, and the magics that use it.

    Args:
        shell: IPython's InteractiveShell.
    """

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._executor: RankedExecutor | None = None
        self._table = Table()
        self._undo = ExitStack()
        parsers = options.parsers()
        self._auto = AutoRanked(shell, parsers["ranked"])
        self._undo.callback(self._auto.close)
        self._register("line", "ranks", parsers["ranks"], self._ranks)
        self._register("cell", "ranked", parsers["ranked"], self._ranked, "all")
        self._register("line", "autoranked", parsers["autoranked"], self._auto.set, "on", "off")

    def unload(self) -> None:
        """End the gang; leave the shell as it was."""
        with self._undo:
            self._off()

    def _register(
        self, kind: str, name: str, parser: Any, run: Callable[..., Any], *words: str
    ) -> None:
        def magic(line: str, *cell: str) -> Any:
            __tracebackhide__ = True  # IPython shows the user's frames only
            return run(parser.parse_argstring(line), *cell)

        shell = self._shell
        magic.__name__ = name
        magic.__doc__ = parser.format_help()
        shell.register_magic_function(magic, kind, name)
        self._undo.callback(shell.magics_manager.magics[kind].pop, name, None)
        key = ("%" if kind == "line" else "%%") + name
        shell.set_hook("complete_command", options.completer(parser, *words), str_key=key)
        self._undo.callback(shell.strdispatchers["complete_command"].strs.pop, key, None)

    # --- %ranks ---

    def _ranks(self, given: Any) -> None:
        from IPython.display import display

        wants_gang = options.says_what_gang(given)
        if given.off + given.info + wants_gang > 1:
            raise options.usage_error("%ranks takes a gang, or --info, or --off")
        if given.off:
            self._off()
            return
        if wants_gang:
            self._set_gang(given)
        display(self._table)

    def _set_gang(self, given: Any) -> None:
        devices = options.parse_devices(given.devices)
        preload = given.preload.split(",") if given.preload else ()
        with options.taking("%ranks"):
            executor = RankedExecutor(
                given.world_size,
                ctx=TorchDDPCtx() if given.ddp else None,
                caller_rank=options.parse_caller_rank(given.caller_rank),
                devices=devices,
                timeout=given.timeout,
                launcher=LocalLauncher(preload=preload, standby=given.standby),
            )
        self._off()  # not before the new one is known to be right
        settings = executor._settings
        self._executor = executor
        self._table = Table(settings.world_size, settings.caller_rank, settings.ctx, devices)

    def _off(self) -> None:
        executor, self._executor, self._table = self._executor, None, Table()
        if executor is not None:
            executor.shutdown()

    # --- %%ranked ---

    def _ranked(self, given: Any, cell: str) -> Any:
        __tracebackhide__ = True
        where = options.parse_where(given)
        text = self._auto.plain(cell)
        if has_await(text):
            raise options.usage_error(
                "%%ranked: a rank has no event loop to await at a cell's top level; say "
                "asyncio.run(...), or run the cell without %%ranked"
            )
        source = self._source("\n" * self._lines_above(cell) + text)
        if where == "local":
            asked = Asked(silent=given.quiet)
            value = self._cell(source, asked)().value
            return None if given.quiet or ends_silently(text) else value
        if self._executor is None:
            raise options.usage_error("%%ranked: there is no gang; %ranks 2 sets one of two ranks")
        options.check_plain(source.text)
        return self._run(self._executor, source, where, given)

    def _source(self, text: str) -> Source:
        shell = self._shell
        history = shell.history_manager
        # Releases differ in when they count: before a cell is run, or after it.
        number = len(history.input_hist_raw) - 1 if history else shell.execution_count
        filename = shell.compile.cache(text, number)
        return Source(text, filename, f"Cell In[{number}]", shell.compile.flags)

    def _lines_above(self, cell: str) -> int:
        """Return how many lines of the cell on the page its text lacks, for tracebacks."""
        empty = 0 if not cell.strip() else cell[: -len(cell.lstrip())].count("\n")
        return empty + (0 if self._auto.has_made(cell) else 1)  # the one that says %%ranked

    def _cell(self, source: Source, asked: Asked) -> Cell:
        __tracebackhide__ = True
        try:
            cell = Cell(source, asked, self._shell.user_ns)
        except SyntaxError as error:
            raise error.with_traceback(None) from None
        self._shell.compile.flags |= cell.flags  # `from __future__` is for later cells, too
        return cell

    def _run(self, executor: RankedExecutor, source: Source, where: str | None, given: Any) -> Any:
        __tracebackhide__ = True
        settings = executor._settings
        caller_rank = None if where == "remote" else settings.caller_rank
        if where == "everywhere" and caller_rank is None:
            caller_rank = 0
        see = options.parse_see(given, settings.world_size)
        collect = see if see is not None else frozenset({0} if caller_rank is None else ())
        asked = Asked(
            gather=given.gather,
            collect=collect - {caller_rank},
            silent=see is not None and caller_rank not in see,
            show_value=not ends_silently(source.text),
        )
        cell = self._cell(source, asked)
        if given.gather and not cell.has_value and given.gather not in cell.assigned:
            raise options.usage_error(
                f"%%ranked --gather {given.gather}: the cell neither assigns {given.gather} nor "
                "ends with an expression"
            )
        with options.taking("%%ranked"):
            derived = executor.options(
                caller_rank=caller_rank,
                gather=True,
                output="all" if see is None else sorted(see),
                timeout=settings.timeout if given.timeout is None else given.timeout,
            )
        results = self._results(derived, cell)
        if given.gather:
            self._shell.user_ns[given.gather] = [result.gathered for result in results]
        for rank in sorted(asked.collect):
            show(rank, results[rank].displays, heading=see is not None)
        if caller_rank is None or asked.silent or not asked.show_value:
            return None
        return results[caller_rank].value

    def _results(self, executor: RankedExecutor, cell: Cell) -> list[CellResult]:
        __tracebackhide__ = True
        future: RankedFuture[Any] = executor.submit(cell)
        try:
            error = future.exception()
        except BaseException:  # Ctrl-C, while all ranks are children
            future.cancel()
            raise
        finally:
            self._table.ranks = future.ranks
        if error is None:
            results: list[CellResult] = future.result()
            return results
        del future  # the traceback holds this frame
        raise error.with_traceback(users_part(error))  # of a child's there is none


_loaded: dict[int, Notebook] = {}
"""By the id of its shell; a process has one, as a rule."""
