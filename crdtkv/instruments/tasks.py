"""Work beside other work, that ends with it and fails with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from crdtkv.errors import CrdtkvError


@contextlib.asynccontextmanager
async def background() -> AsyncIterator[Callable[[Coroutine[Any, Any, None]], None]]:
    """Yields a function that starts tasks; they are cancelled when the block ends, and if one fails, so does the block."""
    tasks: list[asyncio.Task[None]] = []
    try:
        async with asyncio.TaskGroup() as group:
            yield lambda work: tasks.append(group.create_task(work))
            for task in tasks:
                task.cancel()
    except* CrdtkvError as failed:
        # One line for people: the first failure is the cause, the others follow from it.
        raise _first(failed) from failed


def _first(group: BaseExceptionGroup[CrdtkvError]) -> CrdtkvError:
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found
