"""`medkor run`: the phases a config names, resuming where the run stopped.

    medkor run --config configs/quickstart.py --config.phase3.steps=100

The walk itself is `run.pipeline`.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from medkor_jax.commands import dry_run, preflight
from medkor_jax.commands.arguments import CONFIG
from medkor_jax.commands.report import write_at_the_end
from medkor_jax.eval.verdict import GateClosed
from medkor_jax.parallel import hosts
from medkor_jax.parallel.hosts import say
from medkor_jax.run import pipeline
from medkor_jax.run.config_file import load_recipe
from medkor_jax.run.data_lock import with_lock
from medkor_jax.run.holding import held
from medkor_jax.run.on_disk import remove_unfinished
from medkor_jax.run.restart import restart
from medkor_jax.run.summary import closing_table

_RESTART = "move this phase's directory aside and run it again"
_ACCEPT = (
    "keep finished phases although data or settings they were trained with have changed; recorded"
)
_PREFLIGHT = (
    "look first at what would stop the run, as medkor preflight does, "
    "and start only if nothing would"
)
_DRY_RUN = "say what would happen, check what can be without fetching or training, and end"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help=CONFIG)
    parser.add_argument("--restart", metavar="PHASE", action="append", default=[], help=_RESTART)
    parser.add_argument("--accept-changed", action="store_true", help=_ACCEPT)
    words = "go on without rows that cannot be read, and list them"
    parser.add_argument("--drop-bad", action="store_true", help=words)
    parser.add_argument("--preflight", action="store_true", help=_PREFLIGHT)
    parser.add_argument("--dry-run", action="store_true", help=_DRY_RUN)


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    overrides = [*overrides, *(["--config.drop_bad=True"] if arguments.drop_bad else [])]
    recipe = with_lock(load_recipe(arguments.config, overrides))
    if arguments.dry_run:
        return dry_run.show(recipe)
    if arguments.preflight and (code := preflight.run(arguments, overrides)):
        return code
    run_dir = pathlib.Path(recipe.run_dir)
    try:
        with held(run_dir):
            hosts.first("what was not finished is gone", lambda: remove_unfinished(run_dir))
            for aside in restart(recipe, arguments.restart):
                say(f"earlier results are now in {aside}")
            pipeline.Run(recipe, accept_changed=arguments.accept_changed).all()
    except GateClosed:
        write_at_the_end(recipe.run_dir)
        raise
    write_at_the_end(recipe.run_dir)  # behind the lock: what it finds is a run that has ended
    say(closing_table(run_dir, [phase.name for phase in recipe.all_phases]))
    return 0
