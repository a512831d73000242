"""Where Prometheus fetches a node's metrics: HTTP in threads of its own, so that no scrape stops the event loop.

`prometheus_client` makes the answer (text or OpenMetrics as asked for, compressed if wanted); the server is the standard library's.
A connection that says nothing for `TIMEOUT_S` is closed; more than `CONNECTIONS_MAX` at once are turned away.
"""

from __future__ import annotations

import socket
import ssl
import threading
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, make_wsgi_app

from crdtkv.errors import ConfigError
from crdtkv.node.config import Tls, parse_address
from crdtkv.node.metrics import NodeCollector
from crdtkv.transport import address_of

TIMEOUT_S: Final = 10.0
CONNECTIONS_MAX: Final = 16
POLL_S: Final = 0.1


class _Handler(WSGIRequestHandler):
    timeout = TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: stderr is the node's log."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], family: socket.AddressFamily, tls: ssl.SSLContext | None) -> None:
        self.address_family = family
        self._tls = tls
        self._room = threading.BoundedSemaphore(CONNECTIONS_MAX)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # Not as the base class does it, which asks the name service for this machine's name.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "localhost", self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            if self._tls is not None:
                request.settimeout(TIMEOUT_S)
                request = self._tls.wrap_socket(request, server_side=True)  # here: the handshake waits for the other side
            super().process_request_thread(request, client_address)
        except OSError:
            self.shutdown_request(request)  # not a TLS client, or one without the certificate
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked is gone."""


class Scraping:
    """Serves `collector` at an address until `close`.

    Args:
        listen: `host:port`; port 0 takes a free one, see `address`.
        tls: as for clients: HTTPS, and with a `ca` only for who has a certificate that it signed.
    Raises:
        ConfigError: the address cannot be listened on.
    """

    def __init__(self, listen: str, collector: NodeCollector, tls: Tls | None = None) -> None:
        host, port = parse_address(listen, "metrics", port_min=0)
        registry = CollectorRegistry()
        registry.register(collector)
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            self._server = _Server((str(address[0]), port), family, _context(tls))
        except OSError as e:
            raise ConfigError(f"metrics: cannot listen on {listen}: {e.strerror or e}; choose another address", setting="metrics") from e
        self._server.set_app(make_wsgi_app(registry))
        bound = self._server.server_port
        self.address = address_of(host, bound)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(POLL_S,), name="crdtkv-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more connections. Blocks for a moment; idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _context(tls: Tls | None) -> ssl.SSLContext | None:
    if tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.cert, tls.key)
    if tls.ca is not None:
        context.load_verify_locations(tls.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
