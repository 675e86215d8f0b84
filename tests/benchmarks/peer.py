"""What a contestant has that needs no preparation."""

from __future__ import annotations

__all__ = ("Peer",)


class Peer:
    """One of which nothing is made beforehand, and nothing left."""

    def open(self) -> None:
        """Nothing is made beforehand."""

    def close(self) -> None:
        """Nothing is left."""
