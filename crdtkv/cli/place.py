"""Which node a command talks to: `--at`, `CRDTKV_AT`, or a region of a local cluster."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crdtkv.cli.usage import Number
from crdtkv.cluster.control import ClusterFile, ClusterNotRunningError
from crdtkv.cluster.spec import DEFAULT_DIRECTORY, check_known, dir_flag
from crdtkv.errors import CrdtkvError

if TYPE_CHECKING:
    from crdtkv.client import Client


@dataclass(frozen=True, slots=True)
class Place:
    """Where a command is to go.

    Attributes:
        endpoints: in the order in which they are tried.
        timeout_s: the deadline of a request.
        tls_ca, tls_cert, tls_key: PEM files if TLS is spoken.
        options: what of the command line said so, for the next command that is printed; with a space before it.
        local: the addresses of the local cluster, if it is a region of one.
    """

    endpoints: tuple[str, ...]
    timeout_s: float
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    options: str = ""
    local: Mapping[str, str] = field(default_factory=dict)

    def connect(self) -> Client:
        """A client; a context manager."""
        from crdtkv.client import connect

        tls = {"tls_ca": self.tls_ca, "tls_cert": self.tls_cert, "tls_key": self.tls_key}
        return connect(self.endpoints, timeout=self.timeout_s, **tls)


def complete_region(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Regions of the cluster in `--dir`, for the shell."""
    directory = ctx.params.get("directory") or DEFAULT_DIRECTORY
    try:
        return [region for region in ClusterFile.read(Path(directory)).regions if region.startswith(incomplete)]
    except CrdtkvError:
        return []


def directory_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--dir` as the parameter `directory`."""
    return click.option(
        "--dir",
        "directory",
        type=click.Path(path_type=Path, file_okay=False),
        default=DEFAULT_DIRECTORY,
        show_default=True,
        help="Directory of the local cluster.",
    )(command)


def where_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say where, as the parameter `place`."""
    return _where(command, needed=True)


def where_options_if_any(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the same options; `place` is None if neither --at nor --region is given."""
    return _where(command, needed=False)


def _where(command: Callable[..., Any], *, needed: bool) -> Callable[..., Any]:
    @click.option("--at", "at", metavar="HOST:PORT[,…]", help="Nodes to talk to, in this order (or CRDTKV_AT).")
    @click.option("--region", metavar="R", shell_complete=complete_region, help="A region of the local cluster in --dir.")
    @directory_option
    @click.option(
        "--timeout",
        "timeout_s",
        type=Number(min=0, min_open=True),
        default=5.0,
        show_default=True,
        metavar="SECONDS",
        help="Deadline of each request.",
    )
    @click.option("--tls-ca", type=click.Path(), help="Speak TLS and trust who this certificate (PEM) signed.")
    @click.option("--tls-cert", type=click.Path(), help="Our certificate (PEM), for nodes that ask for one.")
    @click.option("--tls-key", type=click.Path(), help="Its key (PEM).")
    @click.pass_context
    def found(
        ctx: click.Context,
        /,
        at: str | None,
        region: str | None,
        directory: Path,
        timeout_s: float,
        tls_ca: str | None,
        tls_cert: str | None,
        tls_key: str | None,
        **kwargs: Any,
    ) -> Any:
        if at is not None and region is not None:
            raise click.UsageError("--at and --region both say where: give one of them", ctx)
        place = None
        if needed or at is not None or region is not None:
            local = {} if region is None else {r: str(node["address"]) for r, node in ClusterFile.read(directory).regions.items()}
            given = {"--at": at, "--region": region, "--tls-ca": tls_ca, "--tls-cert": tls_cert, "--tls-key": tls_key}
            options = "".join(f" {name} {shlex.quote(value)}" for name, value in given.items() if value is not None)
            if region is not None:
                options += dir_flag(directory)
            endpoints = _endpoints(ctx, at, region, directory, local)
            place = Place(endpoints, timeout_s, tls_ca, tls_cert, tls_key, options, local)
        return ctx.invoke(command, place=place, **kwargs)

    found.__name__ = command.__name__
    found.__doc__ = command.__doc__
    found.__click_params__ = [*getattr(command, "__click_params__", []), *found.__click_params__]  # type: ignore[attr-defined]  # where click keeps them
    return found


def _endpoints(ctx: click.Context, at: str | None, region: str | None, directory: Path, local: Mapping[str, str]) -> tuple[str, ...]:
    if region is not None:
        return (local[check_known(region, local)],)
    text = at if at is not None else os.environ.get("CRDTKV_AT", "")
    endpoints = tuple(part.strip() for part in text.split(",") if part.strip())
    if endpoints:
        return endpoints
    known = ""
    with contextlib.suppress(ClusterNotRunningError):
        known = f" (the cluster in {directory} has {', '.join(ClusterFile.read(directory).regions)})"
    raise click.UsageError(f"no node named: give --at HOST:PORT, set CRDTKV_AT, or give --region R{known}", ctx)
