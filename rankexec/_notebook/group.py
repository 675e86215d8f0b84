"""The ranks that Ddip's magics run cells on: a session without the notebook, and its app."""

from __future__ import annotations

from dataclasses import replace

from rankexec._notebook import apps
from rankexec._notebook.cell import Asked, CellResult, Source
from rankexec._notebook.page import compiled, results_of
from rankexec._notebook.table import Table
from rankexec.executor import RankedExecutor
from rankexec.session import Session

__all__ = ("Group",)


class Group:
    """A group, not yet started.

    Args:
        app: what it is prepared for, one of `apps.APPS`.
        world_size: its ranks; None: one for each GPU, else for each CPU core.
        gpus: by rank; None: it has none.
        timeout: seconds that its start may take.

    Raises:
        TypeError, ValueError: a wrong argument.

    Attributes:
        session: its ranks; calls have no time limit.
    """

    def __init__(
        self, app: str, world_size: int | None, gpus: list[str] | None, timeout: float | None
    ) -> None:
        self.app = app
        self.gpus = gpus
        self.session: Session
        self._executor = RankedExecutor(
            world_size,
            caller_rank=None,
            ctx=apps.context_for(app),
            devices=gpus,
            timeout=timeout,
        )
        settings = self._executor._settings
        self.world_size = settings.world_size
        self._table = Table(self.world_size, None, settings.ctx, gpus)
        self._flags = 0  # what cells on the ranks have imported from `__future__`

    def start(self) -> None:
        """Start the ranks and join them. Raises what that has raised; nothing is left then."""
        try:
            self.session = self._executor.session().options(timeout=None)
        except BaseException:
            self._executor.shutdown()
            raise

    def restart(self) -> None:
        """End the ranks, and start new ones, without variables."""
        self._flags = 0
        self.session.restart()

    def end(self) -> None:
        """End the ranks."""
        self._executor.shutdown()

    def table(self) -> Table:
        """Return what is known of the ranks, to be shown."""
        self._table.show_session(self.session.ranks)
        return self._table

    def run(
        self, source: Source, ranks: frozenset[int], command: str | None, *, show_value: bool
    ) -> list[CellResult]:
        """Run a cell on all ranks, in their namespaces.

        Args:
            source: the cell.
            ranks: whose output is shown, as it comes, and whose displays are returned.
            command: of the app, to be run before the cell; None: none.
            show_value: whether the last expression's value is among the displays.

        Raises:
            SyntaxError: it is no Python; nothing was run.
            SessionLost: the ranks are gone.
            BaseException: what a rank raised.
        """
        __tracebackhide__ = True
        source = replace(source, flags=source.flags | self._flags)
        asked = Asked(collect=ranks, show_value=show_value)
        cell = compiled(source, asked, {})  # none of the notebook's variables travel
        self._flags |= cell.flags
        session = self.session.options(gather=True, output=ranks)
        future = session._submit_setting(cell.sets, apps.run_cell, cell, command)
        try:
            return results_of(future)
        finally:
            del future  # an error's traceback holds this frame
