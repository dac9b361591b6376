"""The commands of README, docs/ and launch/ are run as they stand there, in a directory where what they name is small.

A directory `google/medgemma-4b-it` is what that name means there, and so it is with the hub's exams: a model made by hand, exams of
four questions, a tiny run. FILLED says what a reader fills in, and what is made smaller here; ADDED what a command gets behind it. A
launcher says what it would do (DRY_RUN). CANNOT names what runs on no machine that has only the tests, with the reason; as all
commands, it is parsed by test_examples.py.
"""

import collections
import contextlib
import csv
import dataclasses
import importlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from medkor_jax import cli
from medkor_jax.commands import data_translate
from medkor_jax.data import embedded
from medkor_jax.eval.verdict import GateClosed
from medkor_jax.io.bases import save_base
from medkor_jax.io.models import open_model
from medkor_jax.run import pipeline
from medkor_jax.run.config_file import make_recipe

from .commands.test_data_translate import Translator
from .commands.test_thinking import HEAD, make_chain, make_tokenizer, write_model
from .eval.test_named_exams import write_hub
from .run.test_pipeline import make_config
from .test_examples import PAGES, ROOT, commands_of

FILLED = (
    (r"medkor report RUN --out DIR", "medkor report runs/medkor --out seen"),
    (r"--weights (embedded|W)(?= |$)", "--weights google/medgemma-4b-it"),
    (r"--weights (R|RUN)(?= |$)", "--weights runs/medkor"),
    (r"--config (C|FILE)(?= |$)", "--config tiny.py"),
    (r"--explain KEY\b", "--explain phase3.gate"),
    (r"\bRUN/PHASE/", "runs/closed/phase0/"),
    (r"runs/quickstart\b", "runs/medkor"),
    (r"\.\./shared/data/\S+", "exam.csv"),
    (r"--(out|export) DIR(?= |$)", r"--\1 medkor-hf"),
    (r"--greedy \d+", "--greedy 1"),
    (r"--limit \d+", "--limit 2"),
    (r" --texts \d+", ""),
    (r"--mesh fsdp=8", "--mesh fsdp=4"),  # as many devices as the tests have
    (r"--megabytes \d+", "--megabytes 1"),
    (r" /tmp/", " "),
    (r":SEED(?= |$)", ":0"),
    (r"\bCONFIG\b", "configs/quickstart.py"),
)
ADDED = (
    (r"medkor run ", "--dry-run"),
    (r"medkor run .*configs/phase3", "--config.run=\"('phase0','phase1','phase2','phase3')\""),
    (r"medkor run .*configs/quickstart", "--config.weights=google/medgemma-4b-it"),
    (r"medkor plan --config tiny.py", "--model medgemma-4b --topology gpu:1x80GB"),
    (r"medkor plan .*gpu\d+", "\"--config.run=('phase0',)\""),
    (r"medkor precision ", "--limit 2 --texts 2 --forms float32 bfloat16"),
    (r"medkor data translate ", "--max-new-tokens 64"),
)
THEIR_HARDWARE = (
    "the TPU's compiler takes minutes for each; tests/plan compiles a tiny model with it"
)
BENCH = "minutes beside torch; tests/bench makes each of its measurements"
CANNOT = {
    r"bash launch/quickstart.sh": "14 minutes",
    r"bash launch/test.sh": "these are the tests",
    r"(\w+=.* )?(bash )?launch/study.sh": "data that no checkout has, and hours; tests/report/test_study.py, tests/bench/test_study_peer.py",
    r"python -m medkor_jax.report.study": "the study's runs; tests/report/test_study.py",
    r"python -m medkor_jax.bench.study_kl": "the study's runs; the measure: tests/train/test_step.py",
    r"python -m medkor_jax.bench.startup": "a minute of processes; tests/bench/test_startup.py",
    r"medkor bench --device gpu": "a GPU; on this machine's device tests/bench/test_best.py",
    r"medkor bench( --cases \S+ --repeats \d+)?$": BENCH,
    r"medkor plan .*configs/medgemma_27b_8gpu80": "eight devices in a process of their own; tests/plan/test_planner.py plans with it",
    r"medkor plan .*configs/(medgemma_\w+_v5e|pipeline)": THEIR_HARDWARE,
    r"medkor profile .*configs/phase3": "MedGemma's weights, a run up to phase 2 and the hub's data; tests/profiling profiles a tiny run",
    r"medkor data check .*configs/pipeline": "the hub's data; tests/hub/test_sets.py reads a stand-in of each set",
    r"medkor run .*configs/measured": "data that no checkout has, and an hour",
    r"medkor run --config configs/(quickstart.py$|rewarded)": "the 270M's own tokenizer; 14 minutes, or one before it begins",
    r"medkor (run|compare) .*korean.(tokens|vector)": "data that no checkout has; tests/run/test_new_tokens.py",
    r"medkor data fetch": "the public hub; tests/hub/test_fetch.py brings what stands in for it",
}  # fmt: skip


def all_commands():
    """Returns the commands of all pages, each once: as they stand there, without what a page leaves out of a name."""
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        whole, mentioned = commands_of(text)
        found += whole + [one for one in mentioned if has_all(one)]
        for line in re.findall(r"(?m)^(?:    )?([^`\n]+)$|`([^`\n]+)`", text.replace("\\\n", " ")):
            for piece in line:
                if re.match(r"([A-Z_]+=\S+ )*((bash |sbatch .*)?launch/\w+\.(sh|sbatch) \S|bash launch/\w+.sh|python -m medkor_jax)", piece):  # fmt: skip
                    found.append(piece)
    return list(dict.fromkeys(shlex.join(shlex.split(one, comments=True)) for one in found))


def has_all(command):
    """Whether a piece of code in a text is a whole command, not the name of one."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            cli.make_parser().parse_known_args(shlex.split(command, comments=True)[1:])
    except SystemExit:
        return False
    return True


def why_not(command):
    return next((why for pattern, why in CANNOT.items() if re.match(pattern, command)), "")


def filled(command):
    """Returns a command as it is run here."""
    for pattern, words in FILLED:
        command = re.sub(pattern, words, command)
    for pattern, words in ADDED:
        command += f" {words}" if re.match(pattern, command) and words not in command else ""
    return command


COMMANDS = all_commands()
RUN_HERE = list(dict.fromkeys(filled(one) for one in COMMANDS if not why_not(one)))


def small_exam(file, language, first, last):
    """Writes some questions of the embedded exam as KorMedMCQA has them."""
    rows = [
        ["question", *"ABCDE", "answer", "cot"],
        *(
            [q.question, *q.options, q.answer + 1, ""]
            for q in embedded.questions("valid", language)[first:last]
        ),
    ]
    file.parent.mkdir(exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows(rows)


def tiny_run(directory, base, **gate):
    config = make_config(directory, base)
    config["run"] = ("phase0",) if gate else ("phase0", "phase1")
    if gate:
        config["phase0"] = config["phase0"] | dict(gate=config["phase0"]["gate"] | gate)
    return config


@pytest.fixture(scope="module")
def desk(make_base, tiny_base_dir, tmp_path_factory):
    """The working directory: what the commands name is there, and small."""
    desk = tmp_path_factory.mktemp("desk")
    (desk / "configs").symlink_to(ROOT / "configs")
    write_hub(desk)
    for shots in desk.glob("sean0042/KorMedMCQA/*/fewshot.jsonl"):
        shots.write_text(2 * shots.read_text("utf-8"), "utf-8")
    (desk / "bare").mkdir()
    (desk / "bare/configs").symlink_to(ROOT / "configs")
    for place in ("exam.csv", "doctor/valid.csv"):
        small_exam(desk / place, "ko", 0, 3)
    for place in ("fewshot.csv", "doctor/fewshot.csv"):
        small_exam(desk / place, "ko", 4, 9)
    tokenizer = make_tokenizer()
    chain = make_chain(tokenizer, *HEAD, "C", "<end_of_turn>")
    for name in re.findall(r"google/medgemma-[\w.-]+-it", " ".join(RUN_HERE)):
        if not (desk / name).exists():
            write_model(desk / name, tokenizer, chain)
    model = open_model(tiny_base_dir)
    config = dataclasses.replace(model.config, max_positions=8192)
    save_base(desk / "base", make_base(config), config, model.tokenizer, {"made_by": "tests"})
    pipeline.Run(make_recipe(tiny_run(desk / "runs/medkor", desk / "base"))).all()
    with pytest.raises(GateClosed):
        closed = tiny_run(desk / "runs/closed", desk / "base", on_failure="stop", threshold=0.8)
        pipeline.Run(make_recipe(closed)).all()
    for name in ("with", "without"):
        shutil.copytree(desk / "runs/medkor", desk / "runs" / name)
    said = repr(make_config("runs/tiny", "base"))
    config = f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({said})\n"
    (desk / "tiny.py").write_text(config, "utf-8")
    return desk


@pytest.fixture
def at_desk(desk, monkeypatch):
    """There, with no network, a question to ask, and more disk than MedGemma's checkpoints take."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.chdir(desk)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Which vitamin?\n"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(desk / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", desk / "datasets")
    monkeypatch.setenv("MEDKOR_CACHE", str(desk / "cache"))
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2e12, 1e12, 1e12))
    scorer = contextlib.nullcontext(Translator("en"))  # a random model's translations fail
    monkeypatch.setattr(data_translate, "open_scorer", lambda *_, **__: scorer)
    return desk


def perform(command):
    """Runs a command; returns its exit code. What it reads of another command's export is made first."""
    words = shlex.split(command)
    for option in ("--export", "--base"):
        if option in words and not os.path.exists(made := words[words.index(option) + 1]):
            makes = (one for one in RUN_HERE if "medkor export" in one and f"--out {made}" in one)
            assert perform(next(makes)) == 0
    if (
        "--out" in words
        and words[1] == "export"
        and os.path.exists(words[words.index("--out") + 1])
    ):
        return 0  # made for another
    if words[0] == "medkor":
        if re.search(r"(run|data) .*configs/(pipeline|phase3)", command):
            os.chdir("bare")  # where neither weights nor data are here yet
        return cli.main(words[1:])
    if words[0] == "python":
        sys.argv = words[2:]
        return importlib.import_module(words[2]).main() or 0
    at = next(i for i, word in enumerate(words) if word.startswith("launch/"))
    given = dict(word.split("=", 1) for word in words[:at] if re.match(r"[A-Z_]+=", word))
    environment = {**os.environ, **given, "DRY_RUN": "1", "EXTRAS": "none"}
    script = ["bash", ROOT / words[at], *words[at + 1 :]]
    done = subprocess.run(script, env=environment, cwd=ROOT)
    return done.returncode


@pytest.mark.parametrize("command", RUN_HERE)
@pytest.mark.usefixtures("at_desk")
def test_a_command_of_the_pages_runs(command):
    assert perform(command) == 0


@pytest.mark.parametrize("pattern", CANNOT)
def test_what_cannot_run_here_is_on_a_page(pattern):
    assert any(re.match(pattern, command) for command in COMMANDS)
