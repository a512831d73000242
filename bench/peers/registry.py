"""All peers, by name."""

from __future__ import annotations

from typing import Final

from bench.peers.base import EmbeddedPeer, Peer, ServedPeer
from bench.peers.crdts import Loro, Pycrdt
from bench.peers.files import Diskcache, Lmdb, Rocksdict, RocksdictSync, Sqlite
from bench.peers.nats import Nats
from bench.peers.redis import Redis, RedisAlways

EMBEDDED: Final[tuple[type[EmbeddedPeer], ...]] = (Pycrdt, Loro, Rocksdict, RocksdictSync, Lmdb, Sqlite, Diskcache)
SERVED: Final[tuple[type[ServedPeer], ...]] = (Redis, RedisAlways, Nats)
PEERS: Final[dict[str, type[Peer]]] = {peer.name: peer for peer in (*EMBEDDED, *SERVED)}
