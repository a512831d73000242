"""Runs the command line, and presses Ctrl-C in it at a given moment: `python interrupting.py NOTES MOMENT ARGUMENT…`. With the name of
another signal in `CRDTKV_PRESS`, that one is sent, and only at that moment.

A moment is the first call of a function of that name, or a count of calls and returns in the main thread, C functions included: so it
depends on no clock; 1 is before the first import, and the last ones are in the interpreter's end. With `+` after it, Ctrl-C is pressed
again and again from there on. A command that idles before that moment comes is interrupted anyway, after IDLE_S.

NOTES, a file, is told where Ctrl-C was pressed first, or else, at the end, how many moments there were.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IDLE_S = 2.0
AGAIN = 997
"""Moments from one Ctrl-C to the next."""


def main(notes: Path, when: str, arguments: list[str]) -> int:
    """What the command line returns, if it does."""
    moment, again = when.removesuffix("+"), when.endswith("+")
    name, first = ("", int(moment)) if moment.isdigit() else (moment, sys.maxsize)
    count = 0

    def press() -> None:
        if not notes.exists():
            notes.write_text(f"pressed at {count}", encoding="ascii")
        os.kill(os.getpid(), signal.Signals[os.environ.get("CRDTKV_PRESS", "SIGINT")])

    def hook(frame: FrameType, event: str, _: Any) -> None:
        nonlocal count, first
        count += 1
        if name and first == sys.maxsize and event == "call" and frame.f_code.co_name == name:
            first = count
        if count == first or (again and count > first and (count - first) % AGAIN == 0):
            press()

    def ended() -> None:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        if not notes.exists():
            notes.write_text(f"ended after {count}", encoding="ascii")

    sys.path.insert(0, str(ROOT))
    from crdtkv import interrupts
    from crdtkv.__main__ import main as command_line

    sys.argv[1:] = arguments
    atexit.register(ended)  # the later an exit handler is registered, the earlier it is called
    interrupts.end_at_once_on_ctrl_c()
    signal.signal(signal.SIGALRM, lambda _, __: press())
    if "CRDTKV_PRESS" not in os.environ:
        signal.setitimer(signal.ITIMER_REAL, IDLE_S)
    sys.setprofile(hook)
    return command_line()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
