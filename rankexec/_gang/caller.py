"""The calling thread as a rank."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from rankexec._gang import frameworks, namespace
from rankexec._gang.breaking import Breakable
from rankexec._gang.call import Call, RankInfo, perform
from rankexec._gang.environment import restore_environment

__all__ = ("CallerRank",)


class CallerRank(Breakable):
    """The calling thread while it is a rank."""

    def run(
        self,
        call: Call,
        context: AbstractContextManager[Any],
        environment: Mapping[str, str],
        imports: str,
        report: Callable[[BaseException | None, Any], None],
        info: RankInfo,
    ) -> BaseException | None:
        """Run the call in this thread; the same stages as in a child. See `perform`."""
        __tracebackhide__ = True
        restore_environment(environment)
        info.started = info.ready = time.monotonic()
        with namespace.with_imports(imports), self.standing(context):
            frameworks.enter()
            return perform(call, context, self, report, info)
