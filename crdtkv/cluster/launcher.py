"""Starts a node so that it cannot outlive its supervisor, whatever happens to that: run as a script, not imported by nodes.

    python -I -S launcher.py LIFELINE_FD SUPERVISOR_PID COMMAND [ARGUMENT…]

On Linux the process asks the kernel to be killed when its parent dies (PR_SET_PDEATHSIG, which survives exec) and then becomes the
command: no process in between, and a node stopped by SIGSTOP dies too. Elsewhere it leaves a watchdog behind, a child of the node that
reads the lifeline, a pipe whose other end only the supervisor holds, and kills the node when that end is closed.

Only the standard library, and little of it: this runs once per node start.
"""

from __future__ import annotations

import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(supervisor_pid: int) -> bool:
    """Have the kernel kill this process when its parent dies; False where there is no such thing."""
    if sys.platform != "linux":
        return False
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        return False
    if os.getppid() != supervisor_pid:  # it died before we asked, so the kernel will not tell
        os.kill(os.getpid(), signal.SIGKILL)
    return True


def leave_watchdog(lifeline: int) -> None:
    """Fork a process that kills this one when the lifeline's other end is closed."""
    node = os.getpid()
    if os.fork() != 0:
        return
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    while os.read(lifeline, 1):
        pass
    if os.getppid() == node:  # else the node is gone, and its number may be another's
        os.kill(node, signal.SIGKILL)
    os._exit(0)


def main(arguments: list[str]) -> None:
    """Arm, then become the command."""
    lifeline, supervisor_pid, command = int(arguments[0]), int(arguments[1]), arguments[2:]
    if os.environ.pop("CRDTKV_LAUNCHER_WATCHDOG", "") or not die_with_parent(supervisor_pid):
        leave_watchdog(lifeline)
    os.close(lifeline)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
