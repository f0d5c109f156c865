"""Work that ends when its HTTP client leaves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from starlette.types import Receive

T = TypeVar("T")


async def while_connected(receive: Receive, work: Callable[[], Awaitable[T]]) -> T | None:
    """What `work` returns, or None when the client left first, which cancels it. The request's body must be read."""
    result: T | None = None
    failure: Exception | None = None
    async with anyio.create_task_group() as group:

        async def leave_with_client() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(leave_with_client)
        try:
            result = await work()
        except Exception as error:  # raised below as it is, where the group would wrap it
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result
