"""A supervisor without a terminal: `python -m crdtkv.cluster SPEC_JSON owned|detached`. Started by `local.launch`.

On stdout it says in one line of JSON that the cluster is ready, or why not; then it closes stdout and reports to the directory's
`supervisor.log`. An owned one stops when its stdin ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

from crdtkv import interrupts
from crdtkv.cluster import control
from crdtkv.cluster.spec import ClusterSpec
from crdtkv.cluster.supervisor import STOPPED_BY, Supervisor, supervise
from crdtkv.errors import CrdtkvError
from crdtkv.transport.loop import precise_event_loop


def main(spec_json: str, mode: str) -> int:
    """Run until stopped; 1 if it could not start."""
    spec = ClusterSpec.from_wire(json.loads(spec_json))

    def say(answer: bytes) -> None:
        os.write(1, answer)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)

    def on_ready(supervisor: Supervisor) -> None:
        say(control.encode({"result": {region: node.address for region, node in supervisor.nodes.items()}}))

    def report(line: str) -> None:
        with (spec.directory / "supervisor.log").open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {line}\n")

    try:
        with interrupts.noted(*STOPPED_BY) as signals, asyncio.Runner(loop_factory=precise_event_loop) as runner:
            runner.run(supervise(spec, on_ready, report, signals, owner=0 if mode == "owned" else None))
    except CrdtkvError as e:
        say(control.encode_error(e))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
