"""The client to be awaited: `async with crdtkv.aio.connect("127.0.0.1:7001") as client: await client.put("k", 1)`."""

from __future__ import annotations

from crdtkv.client.aio import AsyncClient, connect

__all__ = ["AsyncClient", "connect"]
