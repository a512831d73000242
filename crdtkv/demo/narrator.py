"""What a person sees while the demo runs: phases, progress and findings; plain lines where there is no terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

_PLAIN_EVERY_S = 2.0


class Narrator:
    """Prints to a console; times are those since the demo began."""

    def __init__(self, console: Console, now_s: Callable[[], float] | None = None) -> None:
        began = time.monotonic()
        self.console = console
        self._now_s = now_s or (lambda: time.monotonic() - began)
        self._phases = 0

    def phase(self, title: str) -> None:
        """Begin a phase."""
        self._phases += 1
        self.console.print(f"\n[bold cyan]{self._phases}. {escape(title)}[/]  [dim]{self._now_s():.1f} s[/]")

    def say(self, text: str) -> None:
        """One line of plain text."""
        self.console.print(f"   {escape(text)}", highlight=False, soft_wrap=True)

    def good(self, text: str) -> None:
        """One line about something that held."""
        self.console.print(f"   [green]✓[/] {escape(text)}", highlight=False, soft_wrap=True)

    def bad(self, text: str) -> None:
        """One line about something that did not."""
        self.console.print(f"   [bold red]✗[/] {escape(text)}", highlight=False, soft_wrap=True)

    def check(self, ok: bool, text: str) -> None:
        """One line, good or bad."""
        (self.good if ok else self.bad)(text)

    def block(self, text: str) -> None:
        """Several lines, indented."""
        for line in text.splitlines():
            self.console.print(f"     [dim]{escape(line)}[/]", highlight=False, soft_wrap=True)

    def table(self, columns: list[str], rows: list[list[str]]) -> None:
        """A small table; figures to the right."""
        table = Table(box=None, pad_edge=False, padding=(0, 2))
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i == 0 else "right", header_style="dim", no_wrap=True)
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        self.console.print(table)

    @contextlib.contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar, or a line every two seconds; yields a function that takes how much is done."""
        if self.console.is_terminal:
            bar = Progress(
                TextColumn("   {task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
            )
            with bar:
                task = bar.add_task(label, total=total)
                yield lambda done: bar.update(task, completed=done)
            return
        said = self._now_s()

        def update(done: int) -> None:
            nonlocal said
            if self._now_s() - said >= _PLAIN_EVERY_S:
                said = self._now_s()
                self.say(f"{label}: {done:,} of {total:,}")

        yield update
