"""`medkor`: parse, call one function, print.

    medkor run --config configs/quickstart.py --config.phase3.steps=100
    medkor eval --weights runs/quickstart --exam exam.csv --mode letter

A verb is a line of VERBS and a file of `commands` with `add_arguments(parser)` and `run(arguments,
overrides)`; only the file of the verb asked for is imported, so that `medkor --help` answers at
once.

Exit codes: 0 done, 1 failed with a sentence, 2 bad usage or config, 3 a gate stayed closed, 143
stopped by a signal with everything saved. Several processes run one command together:
`--coordinator` and its neighbours, or a cluster that is found.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

from medkor_jax.commands.arguments import add_place

TOGETHER, FIRST_ALONE, ONE = "together", "process 0 alone", "one process"


class Verb(NamedTuple):
    """module: of `commands`; help: one line; processes: whether several may be started, and whether
    the first does it alone."""

    module: str
    help: str
    processes: str = ONE


VERBS = {
    "run": Verb("run", "run the phases a config names, resuming where the run stopped", TOGETHER),
    "eval": Verb(
        "eval", "put an exam, or pairs of sentences to translate, to any weights", TOGETHER
    ),
    "verify": Verb("verify", "compare texts, logits and greedy text with transformers"),
    "precision": Verb(
        "precision", "what holding the weights in fewer bits costs, in nats and answers"
    ),
    "export": Verb("export", "write a model in a form that other tools load", FIRST_ALONE),
    "ask": Verb("ask", "put one question to a model and watch it answer"),
    "data check": Verb(
        "data_check", "rows, languages, lengths, licences and leaks of a config's sources"
    ),
    "data fetch": Verb(
        "data_fetch",
        "bring all data and weights a config takes from the hub, and pin them; resumable",
    ),
    "data translate": Verb(
        "data_translate", "put an exam into the other language with a model; resumable", TOGETHER
    ),
    "preflight": Verb(
        "preflight", "find now, on all hosts, what would stop a run of this config later", TOGETHER
    ),
    "bench": Verb("bench", "measure speed and memory beside transformers with PEFT", FIRST_ALONE),
    "plan": Verb("plan", "what every stage of a config needs on a machine: memory, time, money"),
    "profile": Verb("profile", "trace a few real steps of a stage, and say where their time goes"),
    "init": Verb("init", "copy the configs that come with the program, to be changed"),
    "config": Verb("config", "what a config says, what its keys mean, how two configs differ"),
    "runs": Verb("runs", "what is in the runs directory, a line a run"),
    "show": Verb("show", "how far a run is, phase by phase, and how it was made"),
    "report": Verb("report", "a run as one page for a browser, as Markdown and as JSON"),
    "compare": Verb(
        "compare", "runs side by side, with paired intervals: which is better, and can one tell"
    ),
    "gc": Verb("gc", "list what of a run can go; delete it only when told"),
    "waive": Verb("waive", "let the next phase start although a verdict failed, with a reason"),
}
FAMILIES = {
    "data": "fetch data, look at it, or translate it"
}  # first words that several verbs share


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    try:
        return _main(sys.argv[1:] if argv is None else list(argv))
    except KeyboardInterrupt:  # while libraries were still imported
        print("medkor: interrupted before anything was begun", file=sys.stderr)
        return 143


def _main(argv: list[str]) -> int:
    name = asked_verb(argv)
    if name:
        _set_up_libraries()  # before the verb's file imports jax
    arguments, overrides = make_parser([name]).parse_known_args(argv)
    if overrides and not hasattr(arguments, "config"):
        print(
            f"medkor: not understood: {' '.join(overrides)}; see medkor {name} --help",
            file=sys.stderr,
        )
        return 2
    from medkor_jax.eval.verdict import GateClosed
    from medkor_jax.parallel import hosts, stopping

    try:
        place = _place(arguments)
        if place and VERBS[name].processes == FIRST_ALONE:
            if place.process_id:
                print(
                    f"medkor: process {place.process_id} of {place.processes} has nothing to do: "
                    f"{name} is done by process 0 alone"
                )
                return 0
            place = None
            # An export needs no device, and one process of a pod cannot open its TPUs by itself.
            if name == "export":
                import jax

                jax.config.update("jax_platforms", "cpu")
        with hosts.connected(place, exit_code):
            return _module(name).run(arguments, overrides) or 0
    except (
        ValueError,
        OSError,
        FloatingPointError,
        ModuleNotFoundError,
        RuntimeError,
        GateClosed,
        stopping.Stopped,
    ) as error:
        if os.environ.get("MEDKOR_TRACEBACK") and exit_code(error) == 1:
            raise
        print(f"medkor: {hosts.signed(words_of(error, stopping.where()))}", file=sys.stderr)
        return hosts.leave(exit_code(error))
    except KeyboardInterrupt as error:
        at_what = f" at {stopping.where()}" if stopping.where() else ""
        words = f"interrupted{at_what}; nothing is left half written: give the same command again"
        print(f"medkor: {hosts.signed(words)}", file=sys.stderr)
        return hosts.leave(exit_code(error))
    except BaseException:
        if hosts.n_processes() > 1:
            traceback.print_exc()
            hosts.leave(1)
        raise


_FREE = "free space, or give the run another run_dir"
_ALLOW = "let this user at it, or name another place"
_MENDS = {
    errno.ENOSPC: _FREE,
    errno.EDQUOT: _FREE,
    errno.EROFS: "mount that disk to be written, or name another place",
    errno.EACCES: _ALLOW,
    errno.EPERM: _ALLOW,
}


def exit_code(error: BaseException) -> int:
    """Returns what the command ends with for an error: see the head of this file."""
    from medkor_jax.eval.verdict import GateClosed
    from medkor_jax.parallel.cluster import ClusterError
    from medkor_jax.parallel.stopping import Stopped
    from medkor_jax.run.phases import ConfigError

    codes: tuple[tuple[type[BaseException], int], ...] = (
        (ConfigError, 2),
        (ClusterError, 2),
        (GateClosed, 3),
        (Stopped, 143),
        (KeyboardInterrupt, 143),
    )
    return next((code for kind, code in codes if isinstance(error, kind)), 1)


def words_of(error: BaseException, place: str) -> str:
    """Returns what an error says; of a place that takes no more, or nothing, also where that was and what to do. place: what
    was being done."""
    to_do = _MENDS.get(error.errno) if isinstance(error, OSError) else None
    if not isinstance(error, OSError) or to_do is None:
        return str(error)
    at_what = f" at {place}" if place else ""
    file = f", {error.filename}" if error.filename else ""
    return f"{error.strerror}{at_what}{file}: {to_do}; what was saved before is kept, and the same command goes on"


def asked_verb(argv: Sequence[str]) -> str:
    """Returns the verb that a command line begins with, "" if it is none."""
    return next((" ".join(argv[:n]) for n in (1, 2) if " ".join(argv[:n]) in VERBS), "")


def make_parser(names: Sequence[str] = tuple(VERBS)) -> argparse.ArgumentParser:
    """Returns the parser of all verbs, with the arguments of those in `names`, whose files are
    imported for it."""
    parser = argparse.ArgumentParser(
        prog="medkor", description="Teach MedGemma the Korean medical licensing exam."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version, and end")
    places = {"": parser.add_subparsers(dest="command", required=True, metavar="command")}
    for name, verb in VERBS.items():
        family, _, word = name.rpartition(" ")
        if family not in places:
            of_family = places[""].add_parser(family, help=FAMILIES[family])
            places[family] = of_family.add_subparsers(
                dest=f"{family}_command", required=True, metavar="command"
            )
        command = places[family].add_parser(word, help=verb.help, description=verb.help)
        if name in names:
            _module(name).add_arguments(command)
            if verb.processes != ONE:
                add_place(command)
    return parser


class _Version(argparse.Action):
    """Looks the version up when it is asked for: every other command does without."""

    def __call__(self, *_: object) -> None:
        from importlib.metadata import version

        print(f"medkor {version('medkor-jax')}")
        sys.exit(0)


def _module(name: str):
    return importlib.import_module(f"medkor_jax.commands.{VERBS[name].module}")


def _place(arguments: argparse.Namespace):
    """Returns which process of how many this is, for a command that several may run together; None
    for one alone."""
    from medkor_jax.parallel.cluster import find_place

    if not hasattr(arguments, "coordinator"):
        return None
    return find_place(arguments.coordinator, arguments.processes, arguments.process_id)


def _set_up_libraries() -> None:
    """Quiet logs, and compiled steps kept on disk: a second start trains within a minute. Set
    variables win."""
    import logging

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not os.environ.get("MEDKOR_TRACEBACK"):
        for name in (
            "absl",
            "asyncio",
        ):  # orbax's threads log, with tracebacks, what they raise and we say
            logging.getLogger(name).setLevel(logging.CRITICAL)

    import jax

    from medkor_jax.data.contents import cache_directory

    config: Any = jax.config  # which names it has, only some versions of jax tell a type checker
    if not config.jax_compilation_cache_dir:
        config.update("jax_compilation_cache_dir", str(cache_directory() / "xla"))


if __name__ == "__main__":
    sys.exit(main())
