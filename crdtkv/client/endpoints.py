"""What `connect` is told: endpoints in order of preference, and the files of TLS."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import grpc

from crdtkv.errors import ConfigError
from crdtkv.transport import check_address
from crdtkv.transport.grpc import channel_credentials, client_context


class Credentials(NamedTuple):
    """Whom to trust and who we are, for the session stream and for gRPC's channels."""

    tls: ssl.SSLContext
    channel: grpc.ChannelCredentials


def check_endpoints(endpoints: str | Iterable[str]) -> tuple[str, ...]:
    """One address or several (also as one text, between commas), each `host:port`, without repetition.

    Raises:
        ConfigError: there is none, or one is not `host:port`; names it.
    """
    if isinstance(endpoints, str):
        listed = [part.strip() for part in endpoints.split(",")]
    elif isinstance(endpoints, Iterable):
        listed = list(endpoints)
    else:
        raise ConfigError(f"endpoints: must be HOST:PORT, or several, got {endpoints!r}")
    if not listed:
        raise ConfigError("endpoints: at least one HOST:PORT is needed")
    return tuple(dict.fromkeys(check_address(endpoint) for endpoint in listed))


def credentials(ca: str | None, cert: str | None, key: str | None) -> Credentials | None:
    """TLS if any of its files is named; None: plain text."""
    if (cert is None) != (key is None):
        raise ConfigError("tls_cert and tls_key belong together")
    if ca is None and cert is None:
        return None
    files = [Path(name) if name else None for name in (ca, cert, key)]
    return Credentials(client_context(*files), channel_credentials(*files))
