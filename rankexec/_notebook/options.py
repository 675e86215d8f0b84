"""The options of the magics: their help, their completion, and every check of what was given."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rankexec._notebook.syntax import ipython_calls

__all__ = (
    "check_held",
    "check_plain",
    "completer",
    "new_parser",
    "parse_caller_rank",
    "parse_devices",
    "parse_ranks",
    "parse_see",
    "parse_where",
    "parsers",
    "says_what_gang",
    "taking",
    "usage_error",
)


def parsers() -> dict[str, Any]:
    """Return the parser of each magic, by name."""
    return {"ranks": _ranks(), "ranked": _ranked(), "autoranked": _autoranked()}


def new_parser(name: str, description: str) -> Any:
    """Return a parser of a magic's arguments, with a help text."""
    from IPython.core.magic_arguments import MagicArgumentParser

    # An abbreviation that works today is ambiguous with the next option.
    made = MagicArgumentParser(name, description=description)
    made.allow_abbrev = False
    made.add_argument("-h", "--help", action="store_true", help="show this")
    return made


def _ranks() -> Any:
    parser = new_parser(
        "ranks",
        "Set the notebook's gang: the ranks on which %%ranked runs cells.\n\n"
        "Without arguments, and with --info, it is shown: ranks, devices, and of the last gang\n"
        "the pids, times and memory.",
    )
    add = parser.add_argument
    add("world_size", nargs="?", type=int, help="ranks; without, one for each device or GPU")
    add("--ddp", action="store_true", help="join the ranks to one torch.distributed group")
    add("--devices", metavar="IDS", help="GPUs by rank, in any order: 0,2")
    add("--caller-rank", metavar="RANK", help="the notebook's rank, 0 unless said; none: no rank")
    add("--preload", metavar="MODULES", help="modules that ranks find imported: fastai.vision.all")
    add("--timeout", type=float, metavar="S", help="seconds that a cell may take")
    add("--standby", action="store_true", help="keep the next cell's ranks started")
    add("--session", action="store_true", help="hold the ranks open: they keep what cells set")
    add("--restart", action="store_true", help="end a session's ranks and start new ones")
    add("--info", action="store_true", help="show the gang")
    add("--off", action="store_true", help="end it")
    return parser


def _ranked() -> Any:
    parser = new_parser(
        "%ranked",
        "Run the cell on all ranks of the gang that %ranks has set.\n\n"
        "The notebook is one of them, rank 0 unless %ranks said otherwise: the cell finds its\n"
        "variables, and what it assigns there is in the notebook afterwards. The other ranks\n"
        "get copies of the variables that the cell reads. The last expression is displayed.",
    )
    add = parser.add_argument
    add("--see", metavar="RANKS", help="show these ranks only, figures and values too: 0,2 or all")
    add("--quiet", action="store_true", help="show nothing of any rank but errors")
    add("--local", action="store_true", help="run the cell in the notebook only, without ranks")
    add("--remote", action="store_true", help="all ranks are children; the notebook is as before")
    add("--everywhere", action="store_true", help="the notebook is a rank: what is done anyhow")
    add("--gather", metavar="NAME", help="set NAME to a list by rank: of NAME, if the cell assigns")
    parser._actions[-1].help += " it, else of the last expression"
    add("--timeout", type=float, metavar="S", help="seconds that the cell may take")
    return parser


def _autoranked() -> Any:
    parser = new_parser(
        "autoranked",
        "Run later cells as if they began with %%ranked and these options.\n\n"
        "Cells that begin with a magic or a shell command are left alone, and cells that await\n"
        "at their top level run in the notebook. Without arguments, say what is set.",
    )
    parser.add_argument("state", nargs="?", choices=["on", "off"])
    parser.add_argument(
        "options", nargs=argparse.REMAINDER, help="options of %%%%ranked, for instance --see all"
    )
    return parser


def completer(parser: Any, *more: str) -> Callable[..., list[str]]:
    """Return a hook for IPython's completion: the options, and other words."""
    named = {name for action in parser._actions for name in action.option_strings}
    words = sorted({*named, *more})

    def complete(_shell: Any, _event: Any) -> list[str]:
        return words  # IPython picks what fits

    return complete


def usage_error(text: str) -> Exception:
    """Return IPython's error for wrong use: it is shown as one line, without a traceback."""
    from IPython.core.error import UsageError

    error: Exception = UsageError(text)
    return error


@contextmanager
def taking(magic: str) -> Iterator[None]:
    """Show what the library says of an argument as wrong use of a magic."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise usage_error(f"{magic}: {error}") from error


def check_plain(text: str, magic: str, local: str) -> None:
    """Raise UsageError if a cell has magics or shell commands; children have no IPython."""
    if "get_ipython" not in text:
        return
    try:
        tree = ast.parse(text)
    except SyntaxError:  # compiling it will say so
        return
    for call, shown in ipython_calls(tree):
        raise usage_error(
            f"{magic}: {shown} in line {call.lineno}: ranks have no IPython; put it into a cell "
            f"of its own, or say {local}"
        )


def says_what_gang(given: Any) -> bool:
    """Return whether %ranks was told a gang."""
    named = (given.world_size, given.devices, given.caller_rank, given.preload, given.timeout)
    return given.ddp or given.standby or given.session or any(value is not None for value in named)


def parse_devices(text: str | None) -> list[str] | None:
    """Return the ids in "0,2"; None if there are none."""
    return None if text is None else [part.strip() for part in text.split(",")]


def parse_caller_rank(text: str | None) -> int | None:
    """Return the notebook's rank; None for "none"."""
    if text is None:
        return 0
    if text.lower() == "none":
        return None
    with taking("%ranks --caller-rank takes a rank or none"):
        return int(text)


def check_held(where: str | None, caller_rank: int | None) -> None:
    """Raise UsageError if a cell is to run elsewhere than on a session's ranks."""
    if where == "remote" and caller_rank is not None:
        raise usage_error(
            f"%%ranked --remote: the notebook is rank {caller_rank} of this session; "
            "%ranks 2 --session --caller-rank none makes one without it"
        )
    if where == "everywhere" and caller_rank is None:
        raise usage_error(
            "%%ranked --everywhere: the notebook is no rank of this session; "
            "%ranks 2 --session makes one in which it is rank 0"
        )


def parse_see(given: Any, world_size: int) -> frozenset[int] | None:
    """Return the ranks that are to be seen; None if nothing was said.

    Raises:
        UsageError: no list of ranks, or there is no such rank.
    """
    if given.quiet and given.see is not None:
        raise usage_error("%%ranked takes --see or --quiet, not both")
    if given.see is None:
        return frozenset() if given.quiet else None
    return parse_ranks("%%ranked --see", given.see.split(","), world_size)


def parse_ranks(option: str, words: list[str], world_size: int) -> frozenset[int]:
    """Return the ranks that an option names: numbers, or "all".

    Raises:
        UsageError: no list of ranks, or there is no such rank.
    """
    if words == ["all"]:
        return frozenset(range(world_size))
    with taking(f"{option} takes 0,2 or all"):
        ranks = frozenset(int(word) for word in words)
    if unknown := sorted(ranks - frozenset(range(world_size))):
        raise usage_error(f"{option}: there is no rank {unknown[0]} of {world_size}")
    return ranks


def parse_where(given: Any) -> str | None:
    """Return where a cell runs: "local", "remote" or "everywhere"; None if nothing was said.

    Raises:
        UsageError: options that exclude each other.
    """
    said = [name for name in ("local", "remote", "everywhere") if getattr(given, name)]
    if len(said) > 1:
        raise usage_error(f"%%ranked takes one of --{' and --'.join(said)}")
    if said == ["local"] and (given.see or given.gather or given.timeout is not None):
        raise usage_error("%%ranked --local starts no ranks: no --see, --gather or --timeout")
    if given.gather is not None and not given.gather.isidentifier():
        raise usage_error(f"%%ranked --gather takes a name, got {given.gather!r}")
    return said[0] if said else None
