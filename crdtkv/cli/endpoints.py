"""Nodes named on the command line by region."""

from __future__ import annotations

from crdtkv.errors import ConfigError


def parse_endpoints(text: str) -> dict[str, str]:
    """`us=HOST:PORT,eu=HOST:PORT` → region → address.

    Raises:
        ConfigError: it is not of that form, or names a region twice.
    """
    from crdtkv.core.causality import check_region

    found: dict[str, str] = {}
    for part in text.split(","):
        region, equals, address = part.strip().partition("=")
        if not equals or ":" not in address:
            raise ConfigError(f"at: {part!r} is not R=HOST:PORT, for example us=127.0.0.1:4780", setting="at")
        if check_region(region) in found:
            raise ConfigError(f"at: {region} is named twice", setting="at")
        found[region] = address
    return found
