"""Ddip's magics: `%load_ext rankexec.ddip`, then `%makedip`, `%%dip`, `%autodip` and so on.

It keeps one session for the notebook, the *group*, whose ranks are all children: their variables
are not the notebook's. IPython is imported by whoever loads it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from typing import Any

from rankexec._notebook import apps, dip_options, options
from rankexec._notebook.cell import Asked, Source
from rankexec._notebook.group import Group
from rankexec._notebook.page import Loaded, Page
from rankexec._notebook.shown import held_back, show
from rankexec._notebook.syntax import ends_silently
from rankexec.errors import SessionLost

__all__ = ("Dip", "load_ipython_extension", "unload_ipython_extension")


def load_ipython_extension(shell: Any) -> None:
    """Add Ddip's magics to a shell; `%load_ext rankexec.ddip` calls this."""
    _loaded.load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """End the group and take the magics away; `%unload_ext rankexec.ddip` calls this."""
    _loaded.unload(shell)


class Dip:
    """A notebook's group, and the magics that use it.

    Args:
        shell: IPython's InteractiveShell.
    """

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._group: Group | None = None
        self._verbose = False
        parsers = dip_options.dip_parsers()
        dip = parsers["dip"]
        self._page = page = Page(
            shell,
            "dip",
            lambda words: dip_options.parse_dip(dip.parse_args(words)),
            marker="#dip_locally",
        )
        made_for = "all", *apps.APPS, "True", "False"
        page.register("line", "makedip", parsers["makedip"], self._makedip, *made_for)
        page.register("cell", "dip", dip, self._dip, "all", *dip_options.WHERE)
        page.register("line", "autodip", parsers["autodip"], self._autodip, "on", "off")
        page.register("line", "dipush", parsers["dipush"], self._dipush)
        page.register("line", "dipull", parsers["dipull"], self._dipull)
        page.register("line", "dipper", parsers["dipper"], self._dipper)

    def unload(self) -> None:
        """End the group; leave the shell as it was."""
        with closing(self._page):
            self._end()

    def _say(self, text: str) -> None:
        if self._verbose:
            sys.stdout.write(f"{text}\n")

    def _needed(self, magic: str) -> Group:
        if self._group is None:
            raise options.usage_error(f"{magic}: {_NO_GROUP}")
        return self._group

    @contextmanager
    def _alive(self, magic: str) -> Iterator[None]:
        try:
            yield
        except SessionLost as lost:
            raise options.usage_error(f"{magic}: {lost} (%makedip -r)") from None

    # --- %makedip ---

    def _makedip(self, given: Any) -> None:
        __tracebackhide__ = True
        dip_options.check_makedip(given)
        asked = given.gpus or given.kill or given.restart or given.verbose
        if given.verbose is not None:
            self._verbose = given.verbose == "True"
        if given.kill:
            self._end()
        elif given.gpus:
            self._make(given)
        elif given.restart:
            self._restart()
        if given.info or not asked:
            self._show()

    def _make(self, given: Any) -> None:
        __tracebackhide__ = True
        app = dip_options.parse_app(given.app)
        size, gpus = dip_options.parse_gpus(given.gpus)
        with options.taking("%makedip"):
            group = Group(app, size, gpus, given.timeout)
        self._end()  # not before the new one is known to be right
        on = f"GPU {', '.join(gpus)}" if gpus else "the CPU"
        self._say(f"%makedip: starts {group.world_size} ranks on {on}, app {app}")
        group.start()
        self._group = group
        self._say_ranks(group)

    def _restart(self) -> None:
        __tracebackhide__ = True
        group = self._needed("%makedip -r")
        self._say(f"%makedip: restarts {group.world_size} ranks")
        group.restart()
        self._say_ranks(group)

    def _say_ranks(self, group: Group) -> None:
        for info in group.session.ranks:
            self._say(f"%makedip: rank {info.rank} is process {info.pid}")

    def _end(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            self._say(f"%makedip: ends {group.world_size} ranks")
            group.end()

    def _show(self) -> None:
        from IPython.display import display

        if self._group is None:
            sys.stdout.write(f"{_NO_GROUP}\n")
        else:
            display(self._group.table())
            sys.stdout.write(f"app: {self._group.app}\n")
        sys.stdout.write(f"autodip: {self._page.auto.state()}\n")

    # --- %%dip, %autodip ---

    def _autodip(self, given: Any) -> None:
        self._page.auto.set(given.state, dip_options.unquoted(given.args))

    def _dip(self, given: Any, cell: str) -> Any:
        __tracebackhide__ = True
        where, see = dip_options.parse_dip(given)
        if not cell.strip():
            return None
        source = self._page.source(cell)
        if where == "local":
            return self._locally(source, quiet=given.quiet)
        group = self._needed("%%dip")
        ranks = options.parse_ranks("%%dip -S", see or ["0"], group.world_size)
        dip_options.check_command(group.app, given.appcmd)
        options.check_plain(source.text, "%%dip", "%%dip local")
        if where == "everywhere":
            value = self._locally(source, quiet=given.quiet)
            if value is not None:
                self._shell.displayhook(value)
        self._say(f"%%dip: runs the cell on {group.world_size} ranks")
        show_value = not ends_silently(source.text)
        with self._alive("%%dip"), held_back() if given.quiet else nullcontext():
            results = group.run(source, ranks, given.appcmd, show_value=show_value)
        for rank in sorted(ranks):
            show(rank, results[rank].displays, heading=bool(see))
        return None

    def _locally(self, source: Source, *, quiet: bool) -> Any:
        __tracebackhide__ = True
        self._say("%%dip: runs the cell in the notebook")
        value = self._page.cell(source, Asked())().value
        return None if quiet or ends_silently(source.text) else value

    # --- variables ---

    def _dipush(self, given: Any) -> None:
        __tracebackhide__ = True
        group = self._needed("%dipush")
        mine = self._shell.user_ns
        for name in given.names:
            if name not in mine:
                raise options.usage_error(f"%dipush: the notebook has no {name!r}")
        self._say(f"%dipush: {', '.join(given.names)} to {group.world_size} ranks")
        with self._alive("%dipush"):
            group.session.push(**{name: mine[name] for name in given.names})

    def _dipull(self, given: Any) -> None:
        __tracebackhide__ = True
        group = self._needed("%dipull")
        options.parse_ranks("%dipull -r", [str(given.rank)], group.world_size)
        self._say(f"%dipull: {', '.join(given.names)} from rank {given.rank}")
        with self._alive("%dipull"):
            values = {name: group.session.pull(name, given.rank) for name in given.names}
        self._shell.user_ns.update(values)

    def _dipper(self, given: Any) -> None:
        group = self._needed("%dipper")
        if not given.name.isidentifier():
            raise options.usage_error(f"%dipper takes a name, got {given.name!r}")
        self._shell.user_ns[given.name] = group.session


_NO_GROUP = "there is no group; %makedip -g all makes one"
_loaded = Loaded(Dip)
