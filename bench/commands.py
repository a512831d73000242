"""What `python -m bench` does: goals, curves, profile, table. Run from the root of the repository.

Ctrl-C, at any moment, ends what is measured, keeps what was measured before, and says in a line how to go on.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path

from bench import machine
from bench.goals import report, runner
from bench.goals.registry import ROWS
from crdtkv import interrupts

OUT = Path("bench-results")


def goals(arguments: argparse.Namespace) -> int:
    """Run rows: all, or those named."""
    rounds = arguments.rounds or (runner.QUICK_ROUNDS if arguments.quick else runner.ROUNDS)
    if arguments.list:
        for row in ROWS.values():
            print(f"{row.name:<16} {row.path}; goal {row.goal}")
        return 0
    unknown = [name for name in arguments.row if name not in ROWS]
    if unknown:
        print(f"row: {unknown[0]!r} is not one of {', '.join(ROWS)}", file=sys.stderr)
        return 2
    if arguments.raw is not None:  # the child of `run_apart`: one row, here
        measured = runner.measure(ROWS[arguments.row[0]], rounds=rounds, quick=arguments.quick, told=_told)
        arguments.raw.write_text(json.dumps(measured), encoding="utf-8")
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    target = arguments.out / "goals.json"
    kept = _earlier(target) if arguments.row or arguments.rest else {}
    rows = [ROWS[name] for name in arguments.row] or [
        row for row in ROWS.values() if kept.get(row.name, {"error": "not measured"})["error"]
    ]
    if not rows:
        print(f"{target} has every row: leave out --rest to measure them anew", file=sys.stderr)
        return 2
    began = time.perf_counter()
    for number, row in enumerate(rows, start=1):
        print(f"[{number}/{len(rows)}, {time.perf_counter() - began:.0f} s] {row.name}: {row.path}", file=sys.stderr, flush=True)
        try:
            measured = runner.run_apart(row, rounds=rounds, quick=arguments.quick, out=arguments.out)
        except KeyboardInterrupt:
            there = f"{len(kept)} of {len(ROWS)} rows are in {target}; make bench ARGS=--rest measures the others"
            print(f"stopped in row {row.name}: {there if kept else 'nothing was measured'}", file=sys.stderr)
            raise
        kept[row.name] = runner.merged(kept.get(row.name) if arguments.append else None, measured)
        document = runner.document(list(ROWS.values()), kept)  # written after each row: what is cut off keeps what it has
        target.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(report.text(next(r for r in document["rows"] if r["name"] == row.name)), flush=True)
    document = json.loads(target.read_text(encoding="utf-8"))
    (arguments.out / "goals.md").write_text(report.markdown(document), encoding="utf-8")
    (arguments.out / "goals.html").write_text(report.page(document), encoding="utf-8")
    print(f"{report.summary(document)}; {time.perf_counter() - began:.0f} s; {arguments.out / 'goals.html'}")
    return 1 if any(kept[row.name]["error"] for row in rows) else 0


def curves(arguments: argparse.Namespace) -> int:
    """Measure the points that are missing, and draw all."""
    from bench.curves import measures, plot, runner

    if arguments.one:
        name, x = arguments.one
        print(json.dumps(measures.CURVES[name].measure(int(x))))
        return 0
    unknown = [name for name in arguments.curve if name not in measures.CURVES]
    if unknown:
        print(f"curve: {unknown[0]!r} is not one of {', '.join(measures.CURVES)}", file=sys.stderr)
        return 2
    names = tuple(arguments.curve or measures.CURVES)
    try:
        missing = runner.run(arguments.points, names, budget_s=arguments.budget, told=_told)
    except KeyboardInterrupt:
        left = len(runner.pending(runner.load(arguments.points, machine.describe()), names))
        total = sum(len(measures.CURVES[name].points) for name in names)
        print(f"stopped: {total - left} of {total} points are in {arguments.points}; the same command goes on from there", file=sys.stderr)
        raise
    except runner.OtherMachineError as e:
        print(e, file=sys.stderr)
        return 2
    if arguments.points.exists():
        plot.draw(json.loads(arguments.points.read_text(encoding="utf-8")), arguments.points.with_suffix(".svg"))
    if missing:
        print(f"still missing: {', '.join(f'{name} {x:,}' for name, x in missing)}")
    return 0


def profile(arguments: argparse.Namespace) -> int:
    """Flame graphs."""
    from bench import profile as profiling

    if arguments.path:
        profiling.run_path(arguments.path[0], float(arguments.path[1]))
        return 0
    return profiling.main(arguments.out, arguments.seconds, arguments.only)


def table(arguments: argparse.Namespace) -> int:
    """The README's figures."""
    from bench import readme_table

    return readme_table.main(check=arguments.check)


def _earlier(path: Path) -> dict[str, dict[str, object]]:
    """What an earlier run has found, row by row."""
    if not path.exists():
        return {}
    document = json.loads(path.read_text(encoding="utf-8"))
    fields = ("name", "seconds", "quick", "rounds", "missing", "error")
    return {row["name"]: {field: row[field] for field in fields} for row in document["rows"]}


def _told(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("goals", help="every goal beside what it is held against")
    command.add_argument("--row", action="append", default=[], metavar="NAME", help="only this row; may be repeated")
    command.add_argument("--rest", action="store_true", help="only the rows that the earlier run, which was stopped, has not measured")
    command.add_argument("--list", action="store_true", help="name the rows")
    command.add_argument("--rounds", type=int, help=f"measured rounds (default {runner.ROUNDS})")
    command.add_argument("--quick", action="store_true", help="a tenth of the work, one round: to see that it runs")
    command.add_argument("--append", action="store_true", help="add the rounds to those of the earlier run of the row")
    command.add_argument("--out", type=Path, default=OUT, help="directory of goals.json, goals.md, goals.html (default %(default)s)")
    command.add_argument("--raw", type=Path, help=argparse.SUPPRESS)
    command.set_defaults(run=goals)

    command = commands.add_parser("curves", help="what an operation costs as things grow; goes on where it was")
    command.add_argument("--curve", action="append", default=[], metavar="NAME", help="only this one; may be repeated")
    command.add_argument("--budget", type=float, metavar="SECONDS", help="begin no point after that")
    command.add_argument(
        "--points", type=Path, default=OUT / "curves.json", help="where they are kept (default %(default)s), the plot beside"
    )
    command.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    command.set_defaults(run=curves)

    command = commands.add_parser("profile", help="flame graphs of the write, apply and read paths")
    command.add_argument("--only", action="append", default=[], metavar="PATH", help="only this one; may be repeated")
    command.add_argument("--seconds", type=float, default=8.0, help="of each (default %(default)s)")
    command.add_argument("--out", type=Path, default=OUT / "profile", help="directory (default %(default)s)")
    command.add_argument("--path", nargs=2, help=argparse.SUPPRESS)
    command.set_defaults(run=profile)

    command = commands.add_parser("table", help="write the README's figures from bench/results")
    command.add_argument("--check", action="store_true", help="only say whether they are there")
    command.set_defaults(run=table)
    arguments = parser.parse_args()
    if any(getattr(arguments, name, None) for name in ("raw", "one", "path")):  # a child: who started it ends it and cleans up
        try:
            return int(arguments.run(arguments))
        except KeyboardInterrupt:  # what it measures had SIGTERM noted
            return 128 + signal.SIGTERM
    with interrupts.noted(*interrupts.ENDED_BY) as signals:
        try:
            return int(arguments.run(arguments))
        except (Exception, KeyboardInterrupt):
            if not signals.received:
                raise
            return 128 + signals.received[0]  # whatever else failed meanwhile: servers of ours have heard of it, too
