"""S3-compatible storage as a target, by way of obstore (the extra `backup`).

Endpoint, region and credentials come from the usual variables: `AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`; or from where obstore looks besides (instance roles). `AWS_ALLOW_HTTP=true` for an endpoint
without TLS. A put replaces an object as a whole, so a backup's manifest is there or not.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from crdtkv.errors import ConfigError, StorageError

try:
    import obstore
    from obstore.exceptions import BaseError, NotFoundError
    from obstore.store import S3Store
except ModuleNotFoundError as e:
    raise ImportError("backups to S3 need the extra 'backup' (obstore is missing): pip install 'crdtkv[backup]'", name="obstore") from e

RETRY_S: Final = 60
RETRIES_MAX: Final = 5


class ObjectTarget:
    """A prefix of a bucket, named as `s3://bucket/prefix`."""

    def __init__(self, url: str) -> None:
        bucket, _, prefix = url.removeprefix("s3://").rstrip("/").partition("/")
        self._url = f"s3://{bucket}/{prefix}".rstrip("/")
        if not bucket:
            raise ConfigError(f"target {url!r}: must be s3://BUCKET or s3://BUCKET/PREFIX")
        try:
            self._store = S3Store(
                bucket,
                prefix=prefix or None,
                retry_config={"max_retries": RETRIES_MAX, "retry_timeout": timedelta(seconds=RETRY_S)},
            )
        except (BaseError, ValueError) as e:
            raise ConfigError(f"target {url!r}: {_why(e)}") from e

    def put(self, name: str, data: bytes) -> None:
        try:
            obstore.put(self._store, name, data)
        except (BaseError, OSError) as e:
            raise StorageError(f"cannot write {self._url}/{name}: {_why(e)}", path=f"{self._url}/{name}") from e

    def get(self, name: str) -> bytes | None:
        try:
            return bytes(obstore.get(self._store, name).bytes())
        except (NotFoundError, FileNotFoundError):
            return None
        except (BaseError, OSError) as e:
            raise StorageError(f"cannot read {self._url}/{name}: {_why(e)}", path=f"{self._url}/{name}") from e

    def delete(self, name: str) -> None:
        try:
            obstore.delete(self._store, name)
        except (NotFoundError, FileNotFoundError):
            pass
        except (BaseError, OSError) as e:
            raise StorageError(f"cannot remove {self._url}/{name}: {_why(e)}", path=f"{self._url}/{name}") from e

    def names(self) -> list[str]:
        try:
            return sorted(found["path"] for page in obstore.list(self._store, chunk_size=1000) for found in page)
        except (BaseError, OSError) as e:
            raise StorageError(f"cannot list {self._url}: {_why(e)}", path=self._url) from e

    def __str__(self) -> str:
        return self._url


def _why(error: Exception) -> str:
    """The first line of what the library says: the rest repeats it with its insides."""
    why = str(error).strip().partition("\n")[0][:300]
    return f"{why}; endpoint, region and credentials come from AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"
