"""Asks nodes how they are, on behalf of the supervisor, which must not load gRPC: it starts processes all its life.

A helper process: each line of JSON on stdin, `{"id": 1, "address": "127.0.0.1:7400"}`, is answered by one on stdout,
`{"id": 1, "status": {…}}` or `{"id": 1, "error": "…"}`, in any order. It ends with its stdin.

`Prober` is the supervisor's side.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

PROBE_TIMEOUT_S: Final = 2.0


class Prober:
    """The helper process, started at the first question and again if it is gone."""

    def __init__(self, start: Callable[[], Awaitable[asyncio.subprocess.Process]]) -> None:
        self._start = start
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[Mapping[str, Any] | None]] = {}
        self._ids = itertools.count(1)
        self._starting = asyncio.Lock()

    async def ask(self, address: str) -> Mapping[str, Any] | None:
        """A node's status, or None if it does not answer."""
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                await self.close()
                self._process = await self._start()
                self._reading = asyncio.create_task(self._read(self._process))
        assert self._process.stdin is not None
        number = next(self._ids)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._process.stdin.write(json.dumps({"id": number, "address": address}).encode() + b"\n")
            # The first answer waits for the helper to import gRPC.
            async with asyncio.timeout(PROBE_TIMEOUT_S + 10):
                status: Mapping[str, Any] | None = await answer
                return status
        except (TimeoutError, OSError):
            return None
        finally:
            del self._waiting[number]

    async def close(self) -> None:
        """End the helper."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if self._reading is not None:
            await self._reading

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            answer = json.loads(line)
            future = self._waiting.get(answer["id"])
            if future is not None and not future.done():
                future.set_result(answer.get("status"))
        for future in self._waiting.values():
            if not future.done():
                future.set_result(None)


# -- the helper's side ----------------------------------------------------------------------------------------------


def summary(address: str, clients: dict[str, Any]) -> dict[str, Any]:
    """What the supervisor wants to know of the node at an address."""
    from crdtkv.client import connect

    client = clients.get(address)
    if client is None:
        client = clients[address] = connect(address, timeout=PROBE_TIMEOUT_S)
    status = client.status()
    return {
        "region": status.region,
        "origin": str(status.origin),
        "ready": status.ready or bool(status.read_only),  # it is up, and waits for room
        "digest": status.digest,
        "vv": dict(status.vv.items()),
        "peers": {peer.region: {"connected": peer.connected, "state": peer.state, "lag_ms": peer.lag_ms} for peer in status.peers},
        "warnings": list(status.warnings),
    }


def main() -> None:
    """Answer until stdin ends; each address in its own thread, so that a silent node delays no other."""
    from crdtkv.errors import CrdtkvError

    clients: dict[str, Any] = {}
    output = threading.Lock()

    def answer(question: dict[str, Any]) -> None:
        try:
            reply: dict[str, Any] = {"id": question["id"], "status": summary(question["address"], clients)}
        except CrdtkvError as e:
            reply = {"id": question["id"], "error": str(e)}
        with output:
            sys.stdout.write(json.dumps(reply) + "\n")
            sys.stdout.flush()

    for line in sys.stdin:
        threading.Thread(target=answer, args=(json.loads(line),), daemon=True).start()


if __name__ == "__main__":
    main()
