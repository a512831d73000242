"""The bare disk: one thread that appends blocks to a file and waits for `fdatasync` after each."""

from __future__ import annotations

import os
import time
from pathlib import Path


def records_per_s(path: Path, *, blocks: int, records: int, size: int) -> float:
    """Records made durable a second, `records` of `size` bytes a block."""
    block = b"x" * (records * size)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        began = time.perf_counter()
        for _ in range(blocks):
            os.write(descriptor, block)
            os.fdatasync(descriptor)
        return blocks * records / (time.perf_counter() - began)
    finally:
        os.close(descriptor)
