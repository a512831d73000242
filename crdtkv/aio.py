"""The client to be awaited: `async with crdtkv.aio.connect("127.0.0.1:7001") as client: await client.put("k", 1)`.

It runs in whatever event loop the program has. Under uvloop, which `crdtkv[server]` brings along, a call costs a seventh less than
under asyncio's own: `uvloop.run(main())`.
"""

from __future__ import annotations

from crdtkv.client.aio import AsyncClient, connect

__all__ = ["AsyncClient", "connect"]
