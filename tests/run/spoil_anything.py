"""A tiny run with one file spoilt, and every command that reads runs put to it. Run by hand: it lists what is no sentence.

    python tests/run/spoil_anything.py BASE OUT                                  # a finished run, every file, every damage, every command
    python tests/run/spoil_anything.py BASE OUT --state stopped --files 'phase0/train/*' --commands run
    python tests/run/spoil_anything.py BASE OUT --files '*.json' --damages empty,flipped --sample 200 --seed 1

BASE: a directory of tiny weights (tests/conftest.py makes one: `tiny_base_dir`). `stopped`: a stage of phase 0 was stopped between two
checkpoints. Good is: exit code 0 with the numbers of the unspoilt run, or a sentence that names the file or its directory. All else is
a line of OUT/faults.jsonl: a traceback, another result, a sentence about something else.
"""

import argparse
import contextlib
import fnmatch
import io
import json
import os
import pathlib
import random
import shutil
import sys
import traceback

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
CONFIG = HERE.parent / "parallel" / "tiny_phases.py"
STRUCK = "phase0/train, saving step 3"
STOPPED = [
    "--config.run=('phase0',)",
    "--config.phase0.save_every=1",
    "--config.phase0.keep_last=2",
]


def flip(path):
    """Turns one bit in the middle of the file."""
    data = bytearray(path.read_bytes())
    if data:
        data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "flipped": flip,
    "bytes": lambda path: path.write_bytes(b"\xff\xfe\x00" + path.read_bytes()[3:]),
    "long": lambda path: path.write_bytes(path.read_bytes() + b"\n{}\n"),
    "a list": lambda path: path.write_text("[]"),
    "a number": lambda path: path.write_text("7\n"),
    "null": lambda path: path.write_text("null\n"),
    "an object": lambda path: path.write_text("{}\n"),
    "of texts": lambda path: path.write_text('["x", "y"]\n'),
    "missing": lambda path: path.unlink(),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
}


def commands(run_dir, out, overrides):
    """Returns, by name, the command lines that read a run; each must leave the run as it was, or do what `run` would."""
    ask = ["--language", "en", "--row", "1", "--max-new-tokens", "4"]
    last = sorted(path.parent for path in run_dir.glob("*/model.json"))
    weights = ["--weights", str(last[-1] if last else run_dir)]
    exam = ["--exam", "embedded", "--language", "en", "--split", "valid", "--limit", "4"]
    return {
        "run": ["run", "--config", str(CONFIG), *overrides],
        "dry": ["run", "--dry-run", "--config", str(CONFIG)],
        "eval": ["eval", *weights, *exam, "--dtype", "float32"],
        "ask": ["ask", *weights, "--exam", "embedded", *ask],
        "export": ["export", *weights, "--to", "hf", "--out", str(out / "exported")],
        "report": ["report", str(run_dir)],
        "compare": ["compare", str(run_dir), str(out / "whole")],
        "show": ["show", str(run_dir)],
        "runs": ["runs", str(run_dir)],
        "gc": ["gc", str(run_dir)],
    }


def call(words):
    """Returns (exit code, what was printed, the traceback if there was one) of a command in this process."""
    from medkor_jax import cli

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            return cli.main(words), said.getvalue(), ""
        except SystemExit as error:
            return error.code, said.getvalue(), ""
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return 1, said.getvalue(), traceback.format_exc()


def judge(name, words, run_dir, file, wanted):
    """Returns what is wrong with the command's end, "" if nothing is."""
    from kill_anywhere import outcome

    code, said, trace = call(words)
    if trace:
        return "TRACEBACK " + " | ".join(trace.splitlines()[-3:])
    if code not in (0, None):
        if "exception" in said.lower() or not said.strip():
            return f"WORDS {said.strip()[-300:]}"
        last = said.strip().splitlines()[-1]
        parts = {part for part in (*pathlib.Path(file).parts, run_dir.name) if len(part) > 3}
        return "" if any(part in last for part in parts) else f"SENTENCE {last[:300]}"
    if name == "run":
        try:
            return "" if outcome(run_dir) == wanted else "ANOTHER RESULT"
        except (OSError, ValueError, KeyError) as error:
            return f"LEFT DAMAGED {error!r}"
    return ""


def make_run(run_dir, base, strike="", overrides=()):
    """Makes a run, once; `strike`: where it is stopped."""
    if (run_dir / "done").exists():
        return
    import tiny_phases

    shutil.rmtree(run_dir, ignore_errors=True)
    os.environ |= {"RUN_DIR": str(run_dir), "WEIGHTS": str(base)}
    told = tiny_phases.hosts.at

    def at(place):
        told(place)
        if place == strike:
            raise ValueError("struck down")

    tiny_phases.hosts.at = at
    code, said, trace = call(["run", "--config", str(CONFIG), *overrides])
    tiny_phases.hosts.at = told
    if bool(strike) != bool(code):
        raise SystemExit(f"{run_dir} ended with {code}: {said[-2000:]} {trace}")
    (run_dir / "done").write_text("")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--state", choices=("finished", "stopped"), default="finished")
    parser.add_argument("--files", default="*", help="a pattern of paths within the run")
    parser.add_argument("--damages", default=",".join(DAMAGES))
    parser.add_argument("--commands", default="")
    parser.add_argument("--sample", type=int, default=0, help="so many cases, drawn; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.path.insert(0, str(CONFIG.parent))
    import tiny_phases
    from kill_anywhere import outcome

    tiny_phases._change_this_process()
    out, base = arguments.out.resolve(), arguments.base.resolve()
    out.mkdir(parents=True, exist_ok=True)
    make_run(out / "whole", base)
    whole, wanted, overrides = out / "whole", outcome(out / "whole"), []
    if arguments.state == "stopped":
        whole, overrides = out / "stopped", STOPPED
        make_run(whole, base, STRUCK, STOPPED)
        wanted = {"phase0": wanted["phase0"]}
    run_dir = out / "spoilt"
    os.environ |= {"RUN_DIR": str(run_dir), "WEIGHTS": str(base)}
    files = sorted(
        str(path.relative_to(whole))
        for path in whole.rglob("*")
        if path.is_file() and path.name not in ("done", ".lock")
    )
    names = [name for name in arguments.commands.split(",") if name] or list(
        commands(run_dir, out, overrides)
    )
    cases = [
        (file, damage, name)
        for file in fnmatch.filter(files, arguments.files)
        for damage in arguments.damages.split(",")
        for name in names
    ]
    if arguments.sample:
        cases = random.Random(arguments.seed).sample(cases, min(arguments.sample, len(cases)))
    n_faults = 0
    for number, (file, damage, name) in enumerate(cases):
        shutil.rmtree(run_dir, ignore_errors=True)
        shutil.rmtree(out / "exported", ignore_errors=True)
        shutil.copytree(whole, run_dir)
        words = commands(run_dir, out, overrides)[name]
        DAMAGES[damage](run_dir / file)
        print(f"{number + 1}/{len(cases)} {name}: {file} {damage}", end=" ", flush=True)
        wrong = judge(name, words, run_dir, file, wanted)
        print(wrong or "well", flush=True)
        if wrong:
            n_faults += 1
            with (out / "faults.jsonl").open("a") as log:
                log.write(
                    json.dumps(dict(file=file, damage=damage, command=name, wrong=wrong)) + "\n"
                )
    print(f"{len(cases)} cases, {n_faults} faults")
    sys.exit(1 if n_faults else 0)


if __name__ == "__main__":
    main()
