"""What starts the children of a gang: the protocols that a launcher and its children follow.

A launcher is leased by every executor and every running gang; with the last lease it ends what it
holds. `LocalLauncher` (in `local`) starts ranks on this host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import RawIOBase
from typing import TYPE_CHECKING, Any, Protocol

from rankexec._gang.call import Seat

if TYPE_CHECKING:
    from rankexec._gang.channel import Channel

__all__ = ("Child", "Ended", "Launcher", "Started")


@dataclass(frozen=True)
class Started:
    """The process exists. `when` is CLOCK_MONOTONIC of its host, in seconds."""

    pid: int
    when: float


@dataclass(frozen=True)
class Ended:
    """The process and everything that it had started are gone.

    `exitcode` is negative for a signal, and None if nobody could see it because the launcher's
    own process was killed. `peak_memory` is in bytes.
    """

    exitcode: int | None
    peak_memory: int | None
    when: float


class Child(Protocol):
    """One rank's process. Everything here returns at once."""

    channel: Channel
    """Where its messages come and go."""
    stdout: RawIOBase
    stderr: RawIOBase
    stacks: RawIOBase
    """To read without waiting: its output, and the stacks that `show_stacks` asks for."""

    def fileno(self) -> int:
        """Return the descriptor that is readable when `news` has something; a socket on Windows."""

    def news(self) -> list[Started | Ended]:
        """Return what has happened since the last call. Raises OSError if it could not start."""

    def show_stacks(self) -> None:
        """Make it write the Python stacks of its threads, whatever it is doing."""

    def terminate(self) -> None:
        """Send it, and it alone, SIGTERM, or what the platform has of that kind."""

    def kill(self) -> None:
        """End it and everything that it has started, by force."""

    def close(self) -> None:
        """Give back what the caller holds of it, its output excepted."""


class Launcher(Protocol):
    """Starts children."""

    def lease(self, preload: Sequence[str] = ()) -> None:
        """Be needed once more; get ready to start children, in the background.

        Args:
            preload: modules that the children will want, for a launcher that can import ahead.
        """

    def release(self) -> None:
        """Be needed once less; with the last lease nothing is left."""

    def start(
        self,
        seats: Sequence[Seat],
        environments: Sequence[Mapping[str, str]],
        preparation: dict[str, Any],
    ) -> Iterator[Child]:
        """Start the processes of one gang; yield each as soon as it can be talked to.

        What was yielded is the gang's, also if the next one cannot be started.

        Args:
            seats: the children's places in the gang.
            environments: the whole environment of each, from its first instruction on.
            preparation: what `rankexec._gang.worker` takes over: sys.path, cwd, argv, umask, ...
        """
