"""What every gRPC channel and server of crdtkv has in common: limits, keepalive, addresses.

Keepalive is short (a ping after 10 s of silence, 5 s for its answer): without it a silent cut shows only after minutes.
The HTTP proxy of the environment is ignored, because nodes speak to addresses they were given. Every channel has a
connection of its own, so that one client's failover does not wait for another's backoff; no port is shared, so that a port
in use is an error.

Imports no grpc itself: `crdtkv.transport.errors` does.
"""

from __future__ import annotations

import re
from typing import Final

from crdtkv.errors import ConfigError

MESSAGE_BYTES_MAX: Final = 32 << 20
"""Greatest gRPC message, sent or received."""
KEEPALIVE_MS: Final = 10_000
KEEPALIVE_TIMEOUT_MS: Final = 5_000

SOCKET_PATH_BYTES_MAX: Final = 100
"""Of a Unix socket's path: systems allow 103 or 107."""

ChannelOptions = list[tuple[str, int]]

_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:.%]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})")


def channel_options(message_bytes_max: int = MESSAGE_BYTES_MAX) -> ChannelOptions:
    """Options of a channel to a node."""
    return [
        ("grpc.max_send_message_length", message_bytes_max),
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),  # retries are ours: they need request ids
    ]


def server_options(message_bytes_max: int = MESSAGE_BYTES_MAX) -> ChannelOptions:
    """Options of a node's server."""
    return [
        ("grpc.max_send_message_length", message_bytes_max),
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
        ("grpc.so_reuseport", 0),
    ]


def check_address(address: object) -> str:
    """Return `address` if it is `host:port` (an IPv6 host in brackets), else raise `ConfigError` that names it."""
    found = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
    if found is None or not 0 < int(found["port"]) < 65536:
        raise ConfigError(f"endpoint {address!r} is not HOST:PORT, e.g. 127.0.0.1:7001 or [::1]:7001", endpoint=str(address))
    return str(address)


def address_of(host: str, port: int) -> str:
    """`host:port`, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
