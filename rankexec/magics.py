"""The IPython extension: `%load_ext rankexec`, then `%ranks`, `%%ranked` and `%autoranked`.

It keeps one RankedExecutor for the notebook and hands it cells. IPython is imported by whoever
loads it.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

from rankexec._notebook import options
from rankexec._notebook.cell import Asked, Cell, CellResult, Source
from rankexec._notebook.page import Loaded, Page, results_of
from rankexec._notebook.shown import show
from rankexec._notebook.syntax import ends_silently
from rankexec._notebook.table import Table
from rankexec.contexts import TorchDDPCtx
from rankexec.errors import SessionLost
from rankexec.executor import RankedExecutor, RankedFuture
from rankexec.launchers.local import LocalLauncher
from rankexec.session import Session

__all__ = ("Notebook", "load_ipython_extension", "unload_ipython_extension")


def load_ipython_extension(shell: Any) -> None:
    """Add the magics to a shell; `%load_ext rankexec` calls this."""
    _loaded.load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """End the notebook's gang and take the magics away; `%unload_ext rankexec` calls this."""
    _loaded.unload(shell)


class Notebook:
    """A notebook's gang, and the magics that use it.

    Args:
        shell: IPython's InteractiveShell.
    """

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._executor: RankedExecutor | None = None
        self._session: Session | None = None
        self._table = Table()
        parsers = options.parsers()
        ranked = parsers["ranked"]
        self._page = page = Page(
            shell, "ranked", lambda words: options.parse_where(ranked.parse_args(words))
        )
        page.register("line", "ranks", parsers["ranks"], self._ranks)
        page.register("cell", "ranked", ranked, self._ranked, "all")
        page.register("line", "autoranked", parsers["autoranked"], self._autoranked, "on", "off")

    def unload(self) -> None:
        """End the gang; leave the shell as it was."""
        with closing(self._page):
            self._off()

    def _autoranked(self, given: Any) -> None:
        self._page.auto.set(given.state, given.options)

    # --- %ranks ---

    def _ranks(self, given: Any) -> None:
        from IPython.display import display

        wants_gang = options.says_what_gang(given)
        if given.off + given.info + given.restart + wants_gang > 1:
            raise options.usage_error("%ranks takes a gang, or --info, --restart or --off")
        if given.off:
            self._off()
            return
        if given.restart:
            self._restart()
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
        if given.session:
            try:
                self._session = executor.session()
            except BaseException:
                self._off()
                raise
            self._table.show_session(self._session.ranks)

    def _restart(self) -> None:
        if self._session is None:
            raise options.usage_error("%ranks --restart: there is no session (%ranks 2 --session)")
        self._session.restart()
        self._table.show_session(self._session.ranks)

    def _off(self) -> None:
        executor, self._executor, self._session = self._executor, None, None
        self._table = Table()
        if executor is not None:
            executor.shutdown()

    # --- %%ranked ---

    def _ranked(self, given: Any, cell: str) -> Any:
        __tracebackhide__ = True
        where = options.parse_where(given)
        source = self._page.source(cell)
        if where == "local":
            asked = Asked(silent=given.quiet)
            value = self._page.cell(source, asked)().value
            return None if given.quiet or ends_silently(source.text) else value
        if self._executor is None:
            raise options.usage_error("%%ranked: there is no gang; %ranks 2 sets one of two ranks")
        options.check_plain(source.text, "%%ranked", "%%ranked --local")
        return self._run(self._executor, source, where, given)

    def _run(self, executor: RankedExecutor, source: Source, where: str | None, given: Any) -> Any:
        __tracebackhide__ = True
        settings = executor._settings
        caller_rank = None if where == "remote" else settings.caller_rank
        if where == "everywhere" and caller_rank is None:
            caller_rank = 0
        if self._session is not None:
            options.check_held(where, settings.caller_rank)
        see = options.parse_see(given, settings.world_size)
        collect = see if see is not None else frozenset({0} if caller_rank is None else ())
        asked = Asked(
            gather=given.gather,
            collect=collect - {caller_rank},
            silent=see is not None and caller_rank not in see,
            show_value=not ends_silently(source.text),
        )
        cell = self._page.cell(source, asked)
        if given.gather and not cell.has_value and given.gather not in cell.assigned:
            raise options.usage_error(
                f"%%ranked --gather {given.gather}: the cell neither assigns {given.gather} nor "
                "ends with an expression"
            )
        with options.taking("%%ranked"):
            ranks = self._ranks_for(
                executor,
                caller_rank,
                gather=True,
                output="all" if see is None else sorted(see),
                timeout=settings.timeout if given.timeout is None else given.timeout,
            )
        results = self._results(ranks, cell)
        if given.gather:
            self._shell.user_ns[given.gather] = [result.gathered for result in results]
        for rank in sorted(asked.collect):
            show(rank, results[rank].displays, heading=see is not None)
        if caller_rank is None or asked.silent or not asked.show_value:
            return None
        return results[caller_rank].value

    def _ranks_for(
        self, executor: RankedExecutor, caller_rank: int | None, **asked: Any
    ) -> RankedExecutor | Session:
        if self._session is None:
            return executor.options(caller_rank=caller_rank, **asked)
        return self._session.options(**asked)

    def _results(self, ranks: RankedExecutor | Session, cell: Cell) -> list[CellResult]:
        __tracebackhide__ = True
        try:
            future: RankedFuture[Any] = (
                ranks._submit_setting(cell.sets, cell)
                if isinstance(ranks, Session)
                else ranks.submit(cell)
            )
        except SessionLost as lost:
            raise options.usage_error(f"%%ranked: {lost} (%ranks --restart)") from None
        try:
            results = results_of(future)
        finally:
            self._table.ranks = future.ranks
            del future  # an error's traceback holds this frame
        return results


_loaded = Loaded(Notebook)
