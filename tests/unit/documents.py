"""Python and shell blocks of Markdown files, for the tests that execute them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Block:
    """One fenced block: where it stands, under which heading, and its text."""

    path: Path
    line: int
    heading: str
    text: str

    def __str__(self) -> str:
        return f"{self.path.name}:{self.line}"

    def run(self, namespace: dict[str, Any]) -> None:
        """Execute as Python; a traceback shows the document's own line numbers."""
        exec(compile("\n" * self.line + self.text, str(self.path), "exec"), namespace)


def blocks(path: Path, language: str) -> list[Block]:
    """The fenced blocks of one language, in order."""
    found: list[Block] = []
    heading, begin, lines = "", None, list[str]()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if begin is not None:
            if line == "```":
                found.append(Block(path, begin, heading, "\n".join(lines) + "\n"))
                begin, lines = None, []
            else:
                lines.append(line)
        elif line == f"```{language}":
            begin = number
        elif line.startswith("#"):
            heading = line.lstrip("# ")
    assert begin is None, f"{path}:{begin}: block is not closed"
    return found
