"""The notebook's gang as a table."""

from __future__ import annotations

import html
from typing import Any

import psutil

from rankexec._gang.call import RankInfo

__all__ = ("Table",)

_HEAD = ("rank", "device", "pid", "start", "cell", "end", "exit code", "memory", "GPU memory")


class Table:
    """A gang, and of the last one that ran what is known of its ranks; no gang without a size."""

    def __init__(
        self,
        world_size: int = 0,
        caller_rank: int | None = None,
        ctx: Any = None,
        devices: list[str] | None = None,
    ) -> None:
        self._world_size = world_size
        self._caller_rank = caller_rank
        self._ctx = ctx
        self._devices = devices
        self.ranks: list[RankInfo] = []
        self._held = False

    def show_session(self, ranks: list[RankInfo]) -> None:
        """Show a session's ranks, which live."""
        self.ranks = ranks
        self._held = True

    def __repr__(self) -> str:
        rows = self._rows() if self._world_size else []
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in rows
        ]
        return "\n".join([self._title(), *lines])

    def _repr_html_(self) -> str:
        title = f"<p>{html.escape(self._title())}</p>"
        if not self._world_size:
            return title
        names, *rows = self._rows()
        head = "".join(f"<th>{name}</th>" for name in names)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows
        )
        return f"{title}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _title(self) -> str:
        if not self._world_size:
            return "there is no gang; %ranks 2 sets one of two ranks"
        ranks = f"{self._world_size} rank{'s' if self._world_size > 1 else ''}"
        caller = self._caller_rank
        here = (
            "the notebook is none of them" if caller is None else f"the notebook is rank {caller}"
        )
        within = f", in {self._ctx!r}" if self._ctx is not None else ""
        ran = "" if self.ranks else "; no cell has run yet"
        held = ", held open" if self._held else ""
        return f"{ranks}, {here}{within}{held}{ran}"

    def _rows(self) -> list[tuple[str, ...]]:
        """Return the head and a row for each rank; of GPU memory only where a rank has used it."""
        ranks = self.ranks or [
            RankInfo(rank, device=self._devices[rank] if self._devices else None)
            for rank in range(self._world_size)
        ]
        rows = [_HEAD, *map(_row, ranks)]
        return rows if any(info.peak_gpu_memory for info in ranks) else [row[:-1] for row in rows]


def _row(info: RankInfo) -> tuple[str, ...]:
    texts = (
        info.rank,
        info.device,
        info.pid,
        _seconds(info.started, info.fn_entered),
        _seconds(info.fn_entered, info.fn_left),
        _seconds(info.fn_left, info.reaped),
        info.exitcode,
        _mebibytes(info.peak_memory or _memory_now(info)),
        _mebibytes(info.peak_gpu_memory),
    )
    return tuple("-" if text is None else str(text) for text in texts)


def _memory_now(info: RankInfo) -> int | None:
    """Return the resident size, in bytes, of a rank that lives."""
    if info.pid is None or info.exitcode is not None:
        return None
    try:
        return int(psutil.Process(info.pid).memory_info().rss)
    except psutil.Error:  # it has just ended
        return None


def _mebibytes(size: int | None) -> str | None:
    return None if size is None else f"{size / 2**20:.0f} MiB"


def _seconds(since: float | None, until: float | None) -> str | None:
    return None if since is None or until is None else f"{until - since:.2f} s"
