"""The options of Ddip's magics: their help, and every check of what was given."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

from rankexec._notebook.apps import APPS, COMMANDS
from rankexec._notebook.options import new_parser, parse_ranks, usage_error
from rankexec._slots import visible_gpus

__all__ = (
    "WHERE",
    "check_command",
    "check_makedip",
    "dip_parsers",
    "parse_app",
    "parse_dip",
    "parse_gpus",
    "unquoted",
)

WHERE = ("remote", "local", "everywhere")


def dip_parsers() -> dict[str, Any]:
    """Return the parser of each magic, by name."""
    makers = (_makedip, _dip, _autodip, _dipush, _dipull, _dipper)
    return {maker.__name__[1:]: maker() for maker in makers}


def _makedip() -> Any:
    parser = new_parser(
        "makedip",
        "Start, restart, end or show the notebook's group: processes, one for each GPU, that are\n"
        "joined to one torch.distributed group and keep their variables from cell to cell.\n\n"
        "Without arguments the group is shown.",
    )
    add = parser.add_argument
    add("-g", "--gpus", nargs="+", metavar="ID", help="make a group, of a rank for each of these")
    parser._actions[-1].help += " GPUs, by rank and in any order (0,2 or 0 2), or all. Without a"
    parser._actions[-1].help += " GPU: a rank for each id, or for each CPU core"
    add("-a", "--app", metavar="APP", help="with -g, what to prepare the ranks for: fastai or none")
    add("-r", "--restart", action="store_true", help="end the group's processes and start new ones")
    add("-k", "--kill", action="store_true", help="end the group")
    add("-i", "--info", action="store_true", help="show the group, its app, and autodip")
    add("-v", "--verbose", nargs="?", const="True", choices=["True", "False"])
    parser._actions[-1].help = "say what is run where, from now on; False: no more"
    add("-t", "--timeout", type=float, metavar="S", help="with -g, seconds the start may take")
    return parser


def _dip() -> Any:
    parser = new_parser(
        "%dip",
        "Run the cell on the group's ranks, in the notebook, or in both.\n\n"
        "The ranks have variables of their own: they find none of the notebook's, and the\n"
        "notebook none of theirs (see %dipush and %dipull).",
    )
    add = parser.add_argument
    add("-q", "--quiet", action="store_true", help="show what ranks print when the cell is done,")
    parser._actions[-1].help += " not as it comes"
    add(
        "-S", "--see", nargs="+", metavar="RANK", help="show these ranks, 0 unless said: 0,2 or all"
    )
    add("-a", "--appcmd", metavar="COMMAND", help="a command of the group's app, to run first")
    add("where", nargs="?", choices=WHERE, help="on the ranks (unless said), in the notebook, or")
    parser._actions[-1].help += " first in the notebook and then on the ranks"
    return parser


def _autodip() -> Any:
    parser = new_parser(
        "autodip",
        "Run later cells as if they began with %%dip and the given options.\n\n"
        "Cells that begin with a magic or a shell command are left alone, and so are those whose\n"
        "first line is #dip_locally. Without arguments, say what is set.",
    )
    parser.add_argument("state", nargs="?", choices=["on", "off"])
    parser.add_argument(
        "-a", "--args", metavar="ARGS", default="", help='options of %%%%dip, in quotes: "-S all"'
    )
    return parser


def _dipush() -> Any:
    parser = new_parser("dipush", "Copy variables of the notebook to all ranks.")
    parser.add_argument("names", nargs="+", metavar="NAME")
    return parser


def _dipull() -> Any:
    parser = new_parser("dipull", "Copy variables of one rank to the notebook.")
    add = parser.add_argument
    add("-r", "--rank", type=int, default=0, help="whose variables, rank 0's unless said")
    add("names", nargs="+", metavar="NAME")
    return parser


def _dipper() -> Any:
    parser = new_parser(
        "dipper",
        "Put the group into a variable: a rankexec.session.Session, with submit, map, push, pull\n"
        "and run_cell.",
    )
    parser.add_argument("name", metavar="NAME")
    return parser


def check_makedip(given: Any) -> None:
    """Raise UsageError if %makedip's options exclude each other."""
    if given.kill and (given.gpus or given.restart):
        raise usage_error("%makedip -k ends the group: no -g or -r")
    for option, value in (("-a", given.app), ("-t", given.timeout)):
        if value is not None and not given.gpus:
            raise usage_error(f"%makedip {option} says how a group is made: it goes with -g")


def parse_app(name: str | None) -> str:
    """Return the app; Ddip's names of it are for the fastai that is installed.

    Raises:
        UsageError: there is no such app, or it is not installed.
    """
    app = "fastai" if name in ("fastai_v1", "fastai_v2") else name or "none"
    if app not in APPS:
        raise usage_error(f"%makedip -a takes {' or '.join(sorted(APPS))}, got {name!r}")
    for module in APPS[app]:
        if importlib.util.find_spec(module) is None:
            raise usage_error(f"%makedip -a {app} needs {module}, which is not installed")
    return app


def check_command(app: str, command: str | None) -> None:
    """Raise UsageError unless the group's app has this command; None is none."""
    if command is None:
        return
    if app == "none":
        raise usage_error("%%dip -a: the group has no app; %makedip -g all -a fastai makes one")
    if command not in COMMANDS:
        raise usage_error(f"%%dip -a takes {', '.join(sorted(COMMANDS))}; got {command!r}")


def parse_gpus(words: list[str]) -> tuple[int | None, list[str] | None]:
    """Return a group's size (None: as many as there are), and its GPUs (None: it has none).

    Raises:
        UsageError: no id, or no GPU of this one.
    """
    ids = [word for word in re.split(r"[,\s]+", " ".join(words)) if word]
    seen = visible_gpus()
    if "all" in ids:
        return None, seen or None
    if not ids:
        raise usage_error("%makedip -g takes GPU ids, 0,2 or 0 2, or all")
    if len(set(ids)) < len(ids):
        raise usage_error(f"%makedip -g takes each GPU once, got {','.join(ids)}")
    for gpu in ids:
        if not (gpu.isdecimal() or gpu.startswith(("GPU-", "MIG-"))):
            raise usage_error(f"%makedip -g takes GPU ids, 0,2 or 0 2, or all; got {gpu!r}")
        if seen and gpu.isdecimal() and gpu not in seen:
            raise usage_error(f"%makedip -g: there is no GPU {gpu}; there are {','.join(seen)}")
    return len(ids), ids if seen else None


def parse_dip(given: Any) -> tuple[str, list[str]]:
    """Return where a cell runs, and the ranks to be seen, as words; none: nothing was said.

    Raises:
        UsageError: options that exclude each other.
    """
    words = [word for word in re.split(r"[,\s]+", " ".join(given.see or ())) if word]
    said = [word for word in words if word in WHERE]  # -S takes all words that follow it
    if len(said) + (given.where is not None) > 1:
        raise usage_error("%%dip takes one of remote, local and everywhere")
    where = given.where or (said[0] if said else "remote")
    words = [word for word in words if word not in WHERE]
    if given.see and not words:
        raise usage_error("%%dip -S takes ranks, 0,2 or 0 2, or all")
    if "all" not in words:
        parse_ranks("%%dip -S", words, max(map(_number, words), default=0) + 1)
    if where == "local" and (words or given.appcmd):
        raise usage_error("%%dip local runs on no ranks: no -S or -a")
    return where, ["all"] if "all" in words else words


def _number(word: str) -> int:
    return int(word) if word.isdecimal() else 0


def unquoted(text: str) -> list[str]:
    """Return the words in an argument that was given in quotes."""
    from IPython.utils.process import arg_split

    words: list[str] = arg_split(text.strip("\"'"))
    return words
