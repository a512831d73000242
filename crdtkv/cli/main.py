"""`crdtkv`: finds the command, runs it, and turns what comes out of it into an exit status and at most one line on stderr.

Help and completion must be quick, so the commands stand in a table here with their one-line descriptions and are imported only when they
are called. With `CRDTKV_DEBUG=1` an error shows its traceback as well.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from crdtkv.cli.errors import BAD_INPUT, DONE, FAILED, INTERRUPTED, UNAVAILABLE, describe, exit_status, is_debugging, one_line
from crdtkv.cli.usage import Group
from crdtkv.errors import CrdtkvError
from crdtkv.version import VERSION

_SECTIONS: Final[tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...]] = (
    (
        "Run",
        (
            ("demo", "demo:demo", "Three regions replicate, conflict, are cut apart, heal; a verifier checks."),
            ("cluster", "cluster:cluster", "A cluster on this machine: nodes, the WAN between them, faults."),
            ("node", "node:node", "One region's node."),
        ),
    ),
    (
        "Data",
        (
            ("put", "data:put", "Store a value."),
            ("get", "data:get", "Print what is stored at a key."),
            ("del", "data:delete", "Delete a key of any type."),
            ("sadd", "data:sadd", "Add elements to a set."),
            ("srem", "data:srem", "Remove elements from a set."),
            ("smembers", "data:smembers", "Print the elements of a set."),
            ("incr", "data:incr", "Add to a counter."),
            ("hset", "data:hset", "Store a value in a field of a map."),
            ("hget", "data:hget", "Print a field of a map."),
            ("hgetall", "data:hgetall", "Print all fields of a map."),
            ("scan", "data:scan", "Print keys and what they hold, in key order."),
            ("watch", "data:watch", "Print changes as they come."),
        ),
    ),
    (
        "Understand",
        (
            ("explain", "inspect:explain", "Tell why a key reads as it does: who wrote what, who won, by which rule."),
            ("conflicts", "inspect:conflicts", "Print the conflicts on record."),
            ("digest", "inspect:digest", "Print the digest of the state: equal where regions have converged."),
            ("status", "inspect:status", "Print a node's state."),
            ("lag", "inspect:lag", "Print how far each peer is ahead and behind."),
        ),
    ),
    (
        "Keep",
        (
            ("verify", "audit:verify", "Compare regions while they are written to: a certificate, or what differs."),
            ("repair", "audit:repair", "Mend what verify finds, from the regions that are sound."),
            ("backup", "backup:backup", "Make, list, check and restore backups."),
            ("recover", "recover:recover", "Save what a directory wrote that the cluster will not take, and write it anew."),
            ("region", "region:region", "Members of the cluster: list, add, drain, remove."),
        ),
    ),
    (
        "Measure and prove",
        (
            ("bench", "bench:bench", "Measure speed."),
            ("profile", "profile:profile", "Find where the time goes."),
            ("simulate", "simulate:simulate", "Run the real replication in virtual time under faults."),
        ),
    ),
)
"""Section → (name, module:attribute below `crdtkv.cli`, help). A command whose module does not exist is not there."""


class LazyGroup(Group):
    """A group that knows its commands by name and imports one when it is called."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]  # click's own arguments, passed through
        here = Path(__file__).parent
        modules = {path.stem for path in here.glob("*.py")}
        self._sections = [(title, [row for row in rows if row[1].partition(":")[0] in modules]) for title, rows in _SECTIONS]
        self._sources = {name: source for _, rows in self._sections for name, source, _ in rows}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._sources)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        source = self._sources.get(cmd_name)
        if source is None:
            return None
        module, _, attribute = source.partition(":")
        command = getattr(importlib.import_module(f"crdtkv.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, rows in self._sections:
            if rows:
                with formatter.section(title):
                    formatter.write_dl([(name, text) for name, _, text in rows], col_max=12)


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"crdtkv {VERSION}")
        ctx.exit()


@click.group(cls=LazyGroup, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version.")
def cli() -> None:
    """An active-active multi-region key-value store.

    Each region takes reads and writes at local latency; regions replicate to each other and converge. No acknowledged write is lost and
    no conflict is silent.

    Start with `crdtkv demo`, or `crdtkv cluster up` and `crdtkv put hello world --region us`.
    """


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status."""
    try:
        result = cli.main(args, prog_name="crdtkv", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else DONE
    except click.exceptions.NoArgsIsHelpError as e:
        click.echo(e.format_message(), err=True)
        return BAD_INPUT
    except click.UsageError as e:
        where = e.ctx.command_path if e.ctx is not None else "crdtkv"
        return _fail(e, f"{one_line(e.format_message()).rstrip('.')}{_dashed(e)}; see `{where} --help`", BAD_INPUT)
    except click.ClickException as e:  # a file that cannot be opened
        return _fail(e, e.format_message(), BAD_INPUT)
    except (click.Abort, KeyboardInterrupt) as e:
        interrupt = e.__cause__ if isinstance(e, click.Abort) else e  # click raises the one from the other
        return 128 + interrupt.args[0] if interrupt is not None and interrupt.args else INTERRUPTED
    except CrdtkvError as e:
        return _fail(e, describe(e), exit_status(e))
    except BrokenPipeError:  # who read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except ModuleNotFoundError as e:
        return _fail(e, _missing(e), FAILED)
    except TimeoutError as e:
        return _fail(e, f"timed out: {e}", UNAVAILABLE)
    except OSError as e:
        return _fail(e, f"{e.filename}: {e.strerror}" if e.filename else str(e), FAILED)
    except Exception as e:
        return _fail(e, f"internal error: {type(e).__name__}: {e}; run it again with CRDTKV_DEBUG=1 and report what it shows", FAILED)


def _dashed(error: click.UsageError) -> str:
    """What to do if an option that is none was meant as a value, such as the -5 of `crdtkv put k -5`."""
    if not isinstance(error, click.NoSuchOption) or error.option_name.startswith("--") or error.ctx is None:
        return ""
    takes_values = any(isinstance(parameter, click.Argument) for parameter in error.ctx.command.params)
    return "; values that begin with - come last, after --" if takes_values else ""


def _fail(error: BaseException, message: str, status: int) -> int:
    if is_debugging():
        traceback.print_exception(error)
    print(f"crdtkv: {one_line(message)}", file=sys.stderr)
    return status


_EXTRA: Final = {
    "grpc": "server",
    "grpc_health": "server",
    "google": "server",
    "lmdb": "lmdb",
    "obstore": "backup",
    "airportsdata": "demo",
    "pycrdt": "bench",
}


def _missing(error: ModuleNotFoundError) -> str:
    top = (error.name or "").partition(".")[0]
    extra = _EXTRA.get(top)
    return f"{top} is not installed: pip install 'crdtkv[{extra}]'" if extra else f"{error}"
