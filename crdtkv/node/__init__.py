"""A region's node: the store behind gRPC, replicating with the other regions' nodes.

    config.py   settings from file, environment and flags
    server.py   lifecycle: listen, open the store, serve, shut down
    worker.py   the store's threads: group commit across clients, off the event loop
    kv.py       the KeyValue service
    admin.py    the Admin service
    peers.py    the links to other nodes: I/O around the drive loop of `crdtkv.replication`
    embed.py    `Node`: a node inside a program
    logging.py  structured events

Importing this package does not import gRPC; running a node does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crdtkv.node.config import Limits, NodeConfig, Tls
from crdtkv.transport.loading import load_grpc

if TYPE_CHECKING:
    from crdtkv.node.embed import Node
    from crdtkv.node.server import run

__all__ = ["Limits", "Node", "NodeConfig", "Tls", "run"]


def __getattr__(name: str) -> Any:
    if name in ("run", "Node"):
        load_grpc()
    if name == "run":
        from crdtkv.node.server import run

        return run
    if name == "Node":
        from crdtkv.node.embed import Node

        return Node
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
