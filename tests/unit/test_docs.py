"""What docs/ shows is true: its Python runs, its links lead somewhere, its command lines parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tests.unit.documents import ROOT, Block, blocks

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def test_conflict_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    examples = blocks(ROOT / "docs" / "conflicts.md", "python")
    for block in examples:
        block.run(namespace)
    assert len(examples) > 15
    assert "greeting" in capsys.readouterr().out


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    missing = [link for link in LINK.findall(document.read_text(encoding="utf-8")) if not (document.parent / link).exists()]
    assert not missing


def command_lines(block: Block) -> list[list[str]]:
    """The `crdtkv …` lines of a shell block, as argument lists."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("crdtkv ")]


@pytest.mark.parametrize("block", [b for d in DOCUMENTS for b in blocks(d, "bash") if command_lines(b)], ids=str)
def test_command_lines_parse(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups parse and find their commands; the commands themselves, parsed, do nothing."""
    from crdtkv.cli.main import cli

    reached: list[str] = []
    monkeypatch.setattr(click.Command, "invoke", lambda self, context: reached.append(self.name))
    for arguments in command_lines(block):
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, f"{block}: crdtkv {shlex.join(arguments)}: {result.output}"
    assert reached
