"""`medkor report`: a run as one page for a browser, as Markdown and as JSON.

    medkor report runs/quickstart                   # runs/quickstart/report/report.html, .md, .json
    medkor report runs/medkor --price 4.8           # what an hour of the machine costs, in whatever money

Every run ends by writing it; during one it says what there is so far.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from medkor_jax.commands.arguments import above_zero
from medkor_jax.io.models import is_run
from medkor_jax.parallel import hosts
from medkor_jax.parallel.hosts import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run's directory")
    parser.add_argument("--out", metavar="DIR", help="default: RUN/report")
    words = "of an hour of the machine: what each phase cost is then said"
    parser.add_argument("--price", type=above_zero, help=words)


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    from medkor_jax.report.page import write_report

    out = pathlib.Path(arguments.out) if arguments.out else None
    print(f"report: {write_report(pathlib.Path(arguments.run), out, arguments.price)}")


def write_at_the_end(run_dir: str) -> None:
    """Writes the report of a run that ends, and says in short what it shows; a report that cannot be written is said, and makes
    no run fail."""
    from medkor_jax.report.files import read_run
    from medkor_jax.report.in_short import in_short
    from medkor_jax.report.page import write_report

    def written() -> str:
        if not is_run(pathlib.Path(run_dir)):
            return ""  # it ended before its first phase began
        try:
            path = write_report(pathlib.Path(run_dir))
            return "\n".join(["", *in_short(read_run(pathlib.Path(run_dir))), f"report: {path}"])
        except Exception as error:  # whatever is wrong with a picture is no fault of the run
            return f"the report could not be written ({type(error).__name__}: {error}); medkor report {run_dir} tries again"

    if said := hosts.first("the report", written):
        say(said)
