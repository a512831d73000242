"""A stand-in for S3-compatible storage in this process: what obstore asks of one, on loopback, with objects in a dict.

Put, get (with ranges), head, list (version 2, in pages), delete, and multipart uploads. Signatures are not checked.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

PAGE = 7  # keys of a listing's page: few, so that listings have several


class ObjectStorage:
    """Buckets and their objects. `fail_after`: puts after so many are answered with an error that is not retried."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.fail_after: int | None = None
        self.puts = 0
        self.calls: list[str] = []
        self.lock = threading.Lock()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    storage: ObjectStorage

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _asked(self) -> tuple[str, dict[str, list[str]]]:
        parts = urlsplit(self.path)
        self.storage.calls.append(f"{self.command} {self.path}")
        return unquote(parts.path).lstrip("/"), parse_qs(parts.query, keep_blank_values=True)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def do_PUT(self) -> None:
        name, query = self._asked()
        data, storage = self._body(), self.storage
        with storage.lock:
            storage.puts += 1
            if storage.fail_after is not None and storage.puts > storage.fail_after:
                return self._reply(403, b"<Error><Code>AccessDenied</Code><Message>no more room</Message></Error>")
            if "uploadId" in query:
                storage.uploads[query["uploadId"][0]][int(query["partNumber"][0])] = data
            else:
                storage.objects[name] = data
        self._reply(200, ETag='"etag"')

    def do_POST(self) -> None:
        name, query = self._asked()
        asked = self._body().decode()
        storage = self.storage
        with storage.lock:
            if "delete" in query:
                keys = [unescape(key) for key in re.findall("<Key>(.*?)</Key>", asked)]
                for key in keys:
                    storage.objects.pop(f"{name.rstrip('/')}/{key}", None)
                body = f"<DeleteResult>{''.join(f'<Deleted><Key>{escape(key)}</Key></Deleted>' for key in keys)}</DeleteResult>"
            elif "uploads" in query:
                number = f"u{len(storage.uploads)}"
                storage.uploads[number] = {}
                body = f"<InitiateMultipartUploadResult><UploadId>{number}</UploadId></InitiateMultipartUploadResult>"
            else:
                parts = storage.uploads.pop(query["uploadId"][0])
                storage.objects[name] = b"".join(parts[n] for n in sorted(parts))
                body = "<CompleteMultipartUploadResult><ETag>&quot;etag&quot;</ETag></CompleteMultipartUploadResult>"
        self._reply(200, body.encode())

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name, query = self._asked()
        if "list-type" in query:
            return self._list(name.partition("/")[0], query)
        data = self.storage.objects.get(name)
        if data is None:
            return self._reply(404, b"<Error><Code>NoSuchKey</Code></Error>")
        headers = {"ETag": '"etag"', "Last_Modified": "Wed, 01 Jan 2025 00:00:00 GMT"}
        self._reply(200, data, **headers)

    def _list(self, bucket: str, query: dict[str, list[str]]) -> None:
        prefix = query.get("prefix", [""])[0]
        after = query.get("continuation-token", [""])[0]
        names = sorted(n for o in self.storage.objects if (n := o.removeprefix(f"{bucket}/")).startswith(prefix) and n > after)
        page, more = names[:PAGE], len(names) > PAGE
        rows = "".join(
            f"<Contents><Key>{escape(n)}</Key><Size>{len(self.storage.objects[f'{bucket}/{n}'])}</Size>"
            "<LastModified>2025-01-01T00:00:00.000Z</LastModified><ETag>&quot;etag&quot;</ETag></Contents>"
            for n in page
        )
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        body = f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{rows}</ListBucketResult>"
        self._reply(200, body.encode(), Content_Type="application/xml")


@contextmanager
def object_storage() -> Iterator[tuple[ObjectStorage, dict[str, str]]]:
    """A running stand-in, and the environment that leads to it."""
    storage = ObjectStorage()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"storage": storage}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield (
            storage,
            {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}",
                "AWS_ALLOW_HTTP": "true",
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_REGION": "us-east-1",
            },
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
