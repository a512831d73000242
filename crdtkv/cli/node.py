"""`crdtkv node`: one region's node in the foreground."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click


@click.command()
@click.option("--region", metavar="R", help="The region's name.")
@click.option("--listen", metavar="HOST:PORT", help="Where clients and peers reach it; port 0 takes a free one.")
@click.option("--data", type=click.Path(path_type=Path), help="Data directory; without one everything is in memory, and gone at the end.")
@click.option("--instance-dir", metavar="DIR|trust", help="Where to keep the token that tells a restored or copied data directory.")
@click.option("--peer", "peers", multiple=True, metavar="R=HOST:PORT", help="Another region's node; once for each.")
@click.option("--metrics", metavar="HOST:PORT", help="Serve metrics for Prometheus here; port 0 takes a free one.")
@click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False), help="TOML file; environment and flags win over it.")
@click.option("--cluster", metavar="NAME", help="Name that all peers must share.")
@click.option("--engine", metavar="rocksdb|lmdb|memory", help="State engine; default: rocksdb with a data directory, else memory.")
@click.option("--durability", metavar="memory|async|sync", help="How safe a write is when it is answered.")
@click.option("--compression", metavar="auto|on|off", help="Compress messages to other nodes; default: auto, on links between regions.")
@click.option("--insecure", is_flag=True, default=None, help="Allow an address that is not loopback without TLS.")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Certificate (PEM).")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its key (PEM).")
@click.option("--tls-ca", type=click.Path(path_type=Path), help="Ask whoever connects for a certificate signed by this one.")
@click.option("--log-level", metavar="debug|info|warning|error", help="What to log on stderr.")
@click.option("--log-format", metavar="logfmt|json", help="Form of the log.")
@click.option("--ready-format", metavar="text|json", help="Form of the line on stdout that says that it takes requests.")
def node(file: Path | None, **flags: Any) -> int:
    """Run one region's node until SIGTERM or Ctrl-C.

    Settings come from flags, then the environment (CRDTKV_REGION, CRDTKV_PEERS, …), then the file. It refuses to listen beyond this
    machine without TLS unless told --insecure.
    """
    from crdtkv.node import NodeConfig, run

    return run(NodeConfig.load(file, os.environ, flags))
