"""The clients: `connect` for threads, `crdtkv.client.aio.connect` for asyncio. Both speak to one region's node over gRPC."""

from __future__ import annotations

from collections.abc import Iterable

from crdtkv.transport.loading import load_grpc

load_grpc()  # before what follows imports it

# ruff: noqa: E402
from crdtkv.client.aio import AsyncClient
from crdtkv.client.endpoints import check_endpoints, credentials
from crdtkv.client.pipeline import Result
from crdtkv.client.sync import Client
from crdtkv.client.wire import check_timeout

__all__ = ["AsyncClient", "Client", "Result", "connect"]


def connect(
    endpoints: str | Iterable[str],
    *,
    timeout: float = 5.0,
    tls_ca: str | None = None,
    tls_cert: str | None = None,
    tls_key: str | None = None,
) -> Client:
    """A client of the first endpoint that answers.

    It connects when first used. When the connection is lost it goes on to the next endpoint: requests that were not sent,
    and reads, are sent there; a write that may have been applied is sent again only to where it was sent before, and
    fails with `maybe_applied` if that does not answer.

    Args:
        endpoints: `"host:port"`, or several in order of preference.
        timeout: seconds for each request.
        tls_ca: PEM file that says whom to trust; with any of the three, TLS is spoken.
        tls_cert, tls_key: PEM files that say who we are.

    Raises:
        ConfigError: an endpoint is not `host:port`, or a file cannot be read; names it.
    """
    return Client(check_endpoints(endpoints), timeout=check_timeout(timeout), credentials=credentials(tls_ca, tls_cert, tls_key))
