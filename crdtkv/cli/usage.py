"""What click says less well: groups that list their commands, and numbers within bounds."""

from __future__ import annotations

import difflib

import click


class Group(click.Group):
    """Lists each command with its whole first sentence, and says what a mistyped name may have meant."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(limit=1000)) for name, command in commands if command is not None])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as e:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            if not near or args[0].startswith("-"):
                raise
            raise click.UsageError(f"No such command {args[0]!r}, perhaps {near[0]!r}", e.ctx) from e


class Number(click.FloatRange):
    """A number within bounds."""

    name = "number"


class Integer(click.IntRange):
    """A whole number within bounds."""

    name = "whole number"
