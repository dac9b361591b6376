"""`medkor`: parse, call one function, print.

    medkor run --config configs/quickstart.py --config.phase3.steps=100
    medkor eval --weights runs/quickstart --exam exam.csv --mode letter

Exit codes: 0 done, 1 failed with a sentence, 2 bad usage or config, 3 a gate stayed closed, 143 stopped by a signal with
everything saved. Several processes run one command together: `--coordinator` and its neighbours, or a cluster that is found.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import sys
import traceback
from typing import Callable, Sequence

PRESET_OF = {"270m": "gemma3-270m", "1b": "gemma3-1b", "4b": "gemma3-4b"}
WEIGHTS = "embedded, a directory, a .gguf file, a hub id, a run, or random:PRESET such as random:gemma3-4b"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments, overrides = make_parser().parse_known_args(argv)
    if overrides and not hasattr(arguments, "config"):
        print(f"medkor: not understood: {' '.join(overrides)}; see medkor {arguments.command} --help", file=sys.stderr)
        return 2
    _set_up_libraries()
    from medkor_jax.eval.verdict import GateClosed
    from medkor_jax.parallel import hosts

    try:
        place = _place(arguments)
        if place and arguments.alone:
            if place.process_id:
                print(f"medkor: process {place.process_id} of {place.processes} has nothing to do: {arguments.command} is done by process 0 alone")
                return 0
            place = None
            if arguments.command == "export":  # it needs none, and one process of a pod cannot open its TPUs by itself
                import jax

                jax.config.update("jax_platforms", "cpu")
        with hosts.connected(place, exit_code):
            return arguments.function(arguments, overrides) or 0
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError, RuntimeError, GateClosed) as error:
        if os.environ.get("MEDKOR_TRACEBACK") and exit_code(error) == 1:
            raise
        print(f"medkor: {hosts.signed(str(error))}", file=sys.stderr)
        return hosts.leave(exit_code(error))
    except BaseException:
        if hosts.n_processes() > 1:
            traceback.print_exc()
            hosts.leave(1)
        raise


def exit_code(error: BaseException) -> int:
    """Returns what the command ends with for an error: see the head of this file."""
    from medkor_jax.eval.verdict import GateClosed
    from medkor_jax.parallel.cluster import ClusterError
    from medkor_jax.parallel.hosts import Stopped
    from medkor_jax.run.phases import ConfigError

    return next((code for kind, code in ((ConfigError, 2), (ClusterError, 2), (GateClosed, 3), (Stopped, 143)) if isinstance(error, kind)), 1)


def _place(arguments: argparse.Namespace):
    """Returns which process of how many this is, for a command that several may run together; None for one alone."""
    from medkor_jax.parallel.cluster import find_place

    return find_place(arguments.coordinator, arguments.processes, arguments.process_id) if hasattr(arguments, "coordinator") else None


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="medkor", description="Teach MedGemma the Korean medical licensing exam.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    run = _command(commands, "run", _run, "run the phases a config names, going on where the run stood")
    run.add_argument("--config", required=True, help="a config file; override keys as --config.phase3.steps=100")
    run.add_argument("--restart", metavar="PHASE", action="append", default=[], help="move this phase's directory aside and run it anew")
    run.add_argument("--accept-changed", action="store_true", help="keep finished phases although data or settings they were trained with have changed; recorded")
    run.add_argument("--drop-bad", action="store_true", help="go on without rows that cannot be read, and list them")
    run.add_argument("--preflight", action="store_true", help="look first at what would stop the run, as medkor preflight does, and start only if nothing would")
    _add_place(run)

    evaluate = _command(commands, "eval", _eval, "put an exam, or pairs of sentences to translate, to any weights")
    evaluate.add_argument("--weights", required=True, help=WEIGHTS)
    asked = evaluate.add_mutually_exclusive_group(required=True)
    asked.add_argument("--exam", help="a file, a hub id, or embedded")
    asked.add_argument("--pairs", help="sentence pairs, translated both ways and scored: a file, a hub id, or embedded")
    evaluate.add_argument("--split", default="valid", help="for a hub id or embedded (default: valid)")
    evaluate.add_argument("--subset", default="", help="for a hub id, such as doctor")
    evaluate.add_argument("--language", default="", choices=("", "ko", "en"), help="default: read from the text")
    evaluate.add_argument("--answers-from", type=int, choices=(0, 1), help="what number keys count from, if the exam does not tell")
    evaluate.add_argument("--fewshot", help="a file or hub id whose first questions are the shots")
    evaluate.add_argument("--mode", default="letter", choices=("letter", "harness", "cloze", "cloze_norm", "reason"))
    evaluate.add_argument("--shots", type=whole(0), default=0)
    evaluate.add_argument("--max-new-tokens", type=whole(1), help="reason mode (default 512) and --pairs (default 256): longest answer")
    evaluate.add_argument("--tags", nargs=2, metavar=("OPEN", "CLOSE"), help="reason mode: tags of the reasoning (default: <R> <R/>)")
    evaluate.add_argument("--limit", type=whole(0), default=0, help="first N questions or pairs (default: all)")
    evaluate.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    evaluate.add_argument("--batch-size", type=whole(1), default=16)
    evaluate.add_argument("--out", help="write one JSON line a question here")
    evaluate.add_argument("--json", action="store_true", help="print the summary as JSON")
    evaluate.add_argument("--drop-bad", action="store_true")
    _add_place(evaluate)

    verify = _command(commands, "verify", _verify, "compare texts, logits and greedy text with transformers")
    verify.add_argument("--weights", required=True, help="embedded, a directory, a .gguf file, a hub id, or with --export a run")
    verify.add_argument("--export", default="", metavar="DIR", help="compare with this export of the weights instead of the weights themselves")
    verify.add_argument("--greedy", type=whole(0), default=0, metavar="N", help="also write N mixed Korean and English continuations: with the cache, by full passes, and in transformers")
    verify.add_argument("--bound", type=above_zero, help="largest logit difference allowed (default 1e-3)")
    verify.add_argument("--json", action="store_true")

    export = _command(commands, "export", _export, "write a model in a form that other tools load")
    export.add_argument("--weights", required=True, help=WEIGHTS)
    export.add_argument("--to", required=True, choices=("hf", "peft"), help="hf: the whole model for transformers; peft: adapters alone")
    export.add_argument("--out", required=True, help="a directory that does not exist yet")
    export.add_argument("--dtype", default="", choices=("", "float32", "bfloat16"), help="hf only (default: that of the base)")
    export.add_argument("--exact-bytes", action="store_true", help="hf only: refuse a model whose byte pieces depend on neighbours, instead of noting it")
    export.add_argument("--text-only", action="store_true", help="hf only: leave out the vision tower of a multimodal base, which is carried on otherwise")
    export.add_argument("--shard-gb", type=above_zero, default=4.0, help="hf only: largest weight file (default 4)")
    export.add_argument("--base", default="", help="peft only: the checkpoint the adapter is for (default: the run's own, where it is one)")
    _add_place(export, alone=True)

    ask = _command(commands, "ask", _ask, "put one question to a model and watch it answer")
    ask.add_argument("--weights", required=True, help=WEIGHTS)
    ask.add_argument("--exam", help="a file, a hub id, or embedded; with --row")
    ask.add_argument("--row", type=whole(1), default=1, help="which question of the exam, from 1 (default 1)")
    ask.add_argument("--split", default="valid", help="for a hub id or embedded (default: valid)")
    ask.add_argument("--subset", default="", help="for a hub id, such as doctor")
    ask.add_argument("--language", default="", choices=("", "ko", "en"), help="for embedded")
    ask.add_argument("--question", help='a text, its options as lines "A. ..."; without it and --exam, standard input')
    ask.add_argument("--mode", default="reason", choices=("reason", "letter"))
    ask.add_argument("--max-new-tokens", type=whole(1), default=512)
    ask.add_argument("--tags", nargs=2, metavar=("OPEN", "CLOSE"), help="tags of the reasoning (default: <R> <R/>)")
    ask.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))

    data = commands.add_parser("data", help="look at data, or translate it").add_subparsers(dest="data_command", required=True, metavar="command")
    check = _command(data, "check", _data_check, "rows, languages, lengths, licences and leaks of a config's sources")
    check.add_argument("--config", required=True)
    check.add_argument("--json", action="store_true")

    translate = _command(data, "translate", _data_translate, "put an exam into the other language with a model; resumable")
    translate.add_argument("--weights", required=True, help=WEIGHTS)
    translate.add_argument("--exam", required=True, help="a file, a hub id, or embedded")
    translate.add_argument("--to", required=True, choices=("en", "ko"))
    translate.add_argument("--out", required=True, help="a .jsonl file; rows that fail the checks go to OUT.failed.jsonl")
    translate.add_argument("--split", default="train", help="for a hub id or embedded (default: train)")
    translate.add_argument("--subset", default="", help="for a hub id, such as doctor")
    translate.add_argument("--adapters", default="on", choices=("on", "off"), help="off: the base alone that a run stands on")
    translate.add_argument("--limit", type=whole(0), default=0, help="first N questions (default: all)")
    translate.add_argument("--batch-size", type=whole(1), default=16)
    translate.add_argument("--max-new-tokens", type=whole(1), default=512, help="longest translation of one line")
    translate.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    translate.add_argument("--drop-bad", action="store_true")
    _add_place(translate)

    flight = _command(commands, "preflight", _preflight, "find now, on all hosts, what would stop a run of this config later")
    flight.add_argument("--config", required=True)
    _add_place(flight)

    bench = _command(commands, "bench", _bench, "measure speed and memory beside transformers with PEFT")
    bench.add_argument("--weights", default="embedded", help=WEIGHTS)
    bench.add_argument("--cases", default="", help="comma-separated; default: all")
    best = bench.add_argument_group("this machine's own best, with random weights: --size and, where it is not to be found by itself")
    best.add_argument("--size", default="", choices=("", *PRESET_OF), help="of a Gemma 3; then --weights is not read")
    best.add_argument("--device", default="", choices=("", "cpu", "gpu", "tpu"), help="default: what jax finds")
    best.add_argument("--dtype", default="", choices=("", "float32", "bfloat16"), help="default: float32 on a CPU, else bfloat16")
    best.add_argument("--seq-len", type=whole(8), help="tokens a row (default: 512 on a CPU, else 2048)")
    best.add_argument("--batch-size", type=whole(1), help="rows over all devices (default: 4 on a CPU, else 8 a device)")
    best.add_argument("--remat", default="", choices=("", "none", "gate_up", "all_but_down", "full"), help="default: the least that fits")
    best.add_argument("--against", default="", choices=("", "hf", "none"), help="default: transformers with PEFT where it can run")
    bench.add_argument("--repeats", type=whole(1), default=5)
    bench.add_argument("--out", default="", help="write the figures as JSON here")

    plan = _command(commands, "plan", _plan, "what every stage of a config needs on a machine: memory, time, money")
    plan.add_argument("--config", required=True, help="a config file; override keys as --config.phase3.steps=100")
    plan.add_argument("--topology", default="", help="v5e:4x4, v6e:2x4, v5p:2x2x2, gpu:8x80GB, cpu:8, or auto: the smallest that fits (default: the config's)")
    plan.add_argument("--model", default="", help="a preset such as medgemma-27b-text, or weights (default: the config's)")
    plan.add_argument("--price", default="", metavar="USD", help="of one chip for one hour, 1.2, or by kind: v5e=1.2,v6e=2.7,gpu=2.5")
    plan.add_argument("--json", action="store_true")
    _add_place(bench, alone=True)

    profile = _command(commands, "profile", _profile, "trace a few real steps of a stage, and say where their time goes")
    profile.add_argument("--config", required=True, help="a config file; override keys as --config.phase3.steps=100")
    profile.add_argument("--phase", default="", help="default: the first to run that trains")
    profile.add_argument("--steps", type=whole(1), default=5)
    profile.add_argument("--out", default="profile", help="the trace goes below this directory (default: profile)")

    waive = _command(commands, "waive", _waive, "let the next phase start although a verdict failed, with a reason")
    waive.add_argument("verdict", help="path of a verdict.json")
    waive.add_argument("--reason", required=True)
    return parser


def _command(commands, name, function, text) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(function=function)
    return parser


def _add_place(parser: argparse.ArgumentParser, *, alone: bool = False) -> None:
    """alone: of several processes, the first does it and the others end at once."""
    parser.set_defaults(alone=alone)
    several = parser.add_argument_group("several processes", "found by themselves on TPU pods, SLURM, Open MPI and GKE; else all three, or MEDKOR_COORDINATOR, MEDKOR_PROCESSES, MEDKOR_PROCESS_ID")
    several.add_argument("--coordinator", default="", metavar="HOST:PORT", help="of process 0; the port after it is used as well")
    several.add_argument("--processes", type=whole(1))
    several.add_argument("--process-id", type=whole(0))


def _run(arguments, overrides) -> int:
    from medkor_jax.parallel.hosts import say
    from medkor_jax.run import pipeline
    from medkor_jax.run.config_file import load_recipe

    overrides = [*overrides, *(["--config.drop_bad=True"] if arguments.drop_bad else [])]
    recipe = load_recipe(arguments.config, overrides)
    if arguments.preflight and (code := _preflight(arguments, overrides)):
        return code
    for aside in pipeline.restart(recipe, arguments.restart):
        say(f"earlier results are now in {aside}")
    pipeline.Run(recipe, accept_changed=arguments.accept_changed).all()
    return 0


def _eval(arguments, _) -> None:
    from medkor_jax.commands import evaluate
    from medkor_jax.data.reasoning import ReasoningFormat
    from medkor_jax.parallel.hosts import say

    shared = dict(
        split=arguments.split, subset=arguments.subset, limit=arguments.limit, dtype=arguments.dtype,
        batch_size=arguments.batch_size, drop_bad=arguments.drop_bad,
    )  # fmt: skip
    if arguments.max_new_tokens is not None:
        shared["max_new_tokens"] = arguments.max_new_tokens
    # What was noted on reading is for a person; with --json standard output holds JSON alone.
    with contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext():
        if arguments.pairs:
            report = evaluate.evaluate_pairs(arguments.weights, arguments.pairs, **shared)
        else:
            report = evaluate.evaluate_file(
                arguments.weights, arguments.exam, language=arguments.language, fewshot=arguments.fewshot, mode=arguments.mode,
                n_shots=arguments.shots, answers_from=arguments.answers_from, form=ReasoningFormat(*arguments.tags or ()), **shared,
            )  # fmt: skip
    if arguments.out:
        report.write(arguments.out)
    say(json.dumps(report.summary(), ensure_ascii=False) if arguments.json else report.table())


def _verify(arguments, _) -> int:
    from medkor_jax.commands import verify

    bound = verify.BOUND if arguments.bound is None else arguments.bound
    result = verify.verify(arguments.weights, export=arguments.export, n_greedy=arguments.greedy, bound=bound)
    print(json.dumps(result.to_json()) if arguments.json else result.table())
    return 0 if result.passed else 1


def _export(arguments, _) -> None:
    from medkor_jax.io.export import export_hf
    from medkor_jax.io.export_peft import export_peft
    from medkor_jax.run.named_model import open_model

    model, out = open_model(arguments.weights), pathlib.Path(arguments.out)
    if arguments.to == "peft":
        done = export_peft(model, out, base=arguments.base)
    else:
        done = export_hf(
            model, out, dtype=arguments.dtype, exact_bytes=arguments.exact_bytes, max_shard_bytes=int(arguments.shard_gb * 1e9),
            text_only=arguments.text_only,
        )  # fmt: skip
    print(done.text())


def _ask(arguments, _) -> None:
    from medkor_jax.commands import ask
    from medkor_jax.data.reasoning import ReasoningFormat

    if arguments.exam:
        where = dict(split=arguments.split, subset=arguments.subset, language=arguments.language)
        question = ask.exam_question(arguments.exam, arguments.row, **where)
    else:
        question = ask.typed_question(sys.stdin.read() if arguments.question is None else arguments.question)
    print(ask.shown_prompt(question, arguments.mode), end="", flush=True)
    asked = ask.ask(
        arguments.weights, question, mode=arguments.mode, max_new_tokens=arguments.max_new_tokens,
        form=ReasoningFormat(*arguments.tags or ()), dtype=arguments.dtype, write=lambda part: print(part, end="", flush=True),
    )  # fmt: skip
    print()
    if asked.probabilities:
        print(ask.answer_table(question, asked, has_key=bool(arguments.exam)))


def whole(least: int) -> Callable[[str], int]:
    """Returns how an argument is read that is a whole number of at least `least`."""

    def read(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"{number} is given, expected at least {least}")
        return number

    read.__name__ = "whole number"  # what argparse calls it where it is none
    return read


def above_zero(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is given, expected a number above 0")
    return number


def _data_check(arguments, overrides) -> int:
    from medkor_jax.commands.check_data import data_json, data_table
    from medkor_jax.run.config_file import load_recipe
    from medkor_jax.run.readiness import check_recipe

    report = check_recipe(load_recipe(arguments.config, overrides))
    print(json.dumps(data_json(report), ensure_ascii=False) if arguments.json else data_table(report))
    return 0 if report.is_clean else 1


def _data_translate(arguments, _) -> None:
    from medkor_jax.commands.translate import translate_exam
    from medkor_jax.parallel.hosts import say

    done = translate_exam(
        arguments.weights, arguments.exam, to=arguments.to, out=arguments.out, split=arguments.split,
        subset=arguments.subset, limit=arguments.limit, adapters=arguments.adapters == "on",
        batch_size=arguments.batch_size, max_new_tokens=arguments.max_new_tokens, dtype=arguments.dtype,
        drop_bad=arguments.drop_bad, on_progress=lambda done, total: say(f"translated {done} of {total}"),
    )  # fmt: skip
    say(done.table())


def _preflight(arguments, overrides) -> int:
    from medkor_jax.commands.preflight import preflight
    from medkor_jax.parallel.hosts import say
    from medkor_jax.run.config_file import load_recipe

    report = preflight(load_recipe(arguments.config, overrides))
    say(report.table())
    return 0 if report.is_clear else 1


def _bench(arguments, _) -> None:
    from medkor_jax import bench

    cases = [case for case in arguments.cases.split(",") if case]
    asked = {name: getattr(arguments, name) for name in ("device", "dtype", "seq_len", "batch_size", "remat", "against")}
    if arguments.size:
        print(bench.run_best(PRESET_OF[arguments.size], cases, repeats=arguments.repeats, out=arguments.out, **asked).table())
        return
    if given := [f"--{name.replace('_', '-')}" for name, value in asked.items() if value]:
        raise ValueError(f"{', '.join(given)} is for the machine's own best: give --size {', '.join(PRESET_OF)} as well")
    print(bench.run(arguments.weights, cases, repeats=arguments.repeats, out=arguments.out).table())


def _plan(arguments, overrides) -> int:
    from medkor_jax.plan import report
    from medkor_jax.plan.command import plan_config

    plan = plan_config(arguments.config, overrides, topology=arguments.topology, model=arguments.model, price=arguments.price)
    print(json.dumps(report.to_json(plan)) if arguments.json else report.table(plan))
    return 0 if plan.fits else 1


def _profile(arguments, overrides) -> None:
    from medkor_jax.profiling.command import profile_config

    print(profile_config(arguments.config, overrides, phase=arguments.phase, steps=arguments.steps, out=arguments.out).table())


def _waive(arguments, _) -> None:
    from medkor_jax.eval import verdict

    verdict.waive(arguments.verdict, arguments.reason)
    print(f"{arguments.verdict} is waived: {arguments.reason}")


def _set_up_libraries() -> None:
    """Quiet logs, and compiled steps kept on disk: a second start trains within a minute. Set variables win."""
    import logging

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("absl").setLevel(logging.ERROR)

    import jax

    from medkor_jax.data.contents import cache_directory

    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "xla"))


if __name__ == "__main__":
    sys.exit(main())
