"""Coverage-guided fuzzing of every decoder with atheris, where that installs: `make fuzz`, or `python -m tests.fuzz DECODER [SECONDS]`.

The promise is that of `tests/property/test_hostile_bytes.py`: a value, or the error that says what is wrong. Inputs that broke it are
kept under `tests/fuzz/corpus/DECODER`, which the property tests decode again for ever.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


def fuzz(name: str, seconds: int) -> None:
    """Run one decoder until the time is up or it breaks its promise; never returns."""
    import atheris  # type: ignore[import-not-found, unused-ignore]

    with atheris.instrument_imports(include=["crdtkv"]):
        from tests.property.test_hostile_bytes import DECODERS, meets

    findings = CORPUS / name.replace(" ", "_")
    findings.mkdir(parents=True, exist_ok=True)
    (seeds := Path(".fuzz") / findings.name).mkdir(parents=True, exist_ok=True)
    (seeds / "good").write_bytes(DECODERS[name][1])
    options = [f"-max_total_time={seconds}", "-max_len=4096", "-rss_limit_mb=1024", "-timeout=10", f"-artifact_prefix={findings}/"]
    atheris.Setup([sys.argv[0], *options, str(seeds), str(findings)], lambda data: meets(name, data))
    atheris.Fuzz()


def main(arguments: list[str]) -> int:
    seconds = int(arguments[1]) if len(arguments) > 1 else 30
    if arguments and arguments[0] != "all":
        fuzz(arguments[0], seconds)
    from crdtkv import interrupts
    from tests.property.test_hostile_bytes import DECODERS

    interrupts.end_at_once_on_ctrl_c()
    failed = [name for name in DECODERS if subprocess.run([sys.executable, "-m", "tests.fuzz", name, str(seconds)], check=False).returncode]
    for name in failed:
        print(f"{name}: broken; the input is in {CORPUS / name.replace(' ', '_')}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
