"""Commands, their exit codes, and what they print."""

import argparse
import asyncio
import csv
import importlib
import importlib.metadata
import inspect
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from medkor_jax import cli
from medkor_jax.data import embedded
from medkor_jax.eval.verdict import GateClosed
from medkor_jax.io.checkpoint import readable, writable
from medkor_jax.parallel import hosts
from medkor_jax.run import pipeline

REPOSITORY = pathlib.Path(__file__).parents[1]
QUICKSTART = str(REPOSITORY / "configs/quickstart.py")


@pytest.fixture
def exam(tmp_path):
    path = tmp_path / "exam.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", *"ABCDE", "answer"])
        writer.writerows(
            [q.question, *q.options, q.answer + 1] for q in embedded.questions("valid", "en")[:6]
        )
    return path


def test_eval_writes_a_line_a_question_and_a_summary(tiny_base_dir, exam, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    assert (
        cli.main(
            [
                "eval",
                "--weights",
                str(tiny_base_dir),
                "--exam",
                str(exam),
                "--out",
                str(out),
                "--json",
            ]
        )
        == 0
    )
    answers = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(answers) == 6
    assert [a["key"] for a in answers] == [
        "ABCDE"[q.answer] for q in embedded.questions("valid", "en")[:6]
    ]
    assert len({a["id"] for a in answers}) == 6
    assert all(
        a["correct"] == (a["predicted"] == a["key"]) and a["text"] == a["predicted"]
        for a in answers
    )
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    overall = summary["scores"][0]
    assert (overall["n"], overall["correct"]) == (6, sum(a["correct"] for a in answers))


def test_eval_as_json_keeps_what_was_noted_out_of_standard_output(tiny_base_dir, exam, capsys):
    exam.write_text(
        exam.read_text("utf-8").replace("question,", "\ufeffquestion,").replace("A", "A\u0301"),
        "utf-8",
    )
    text = exam.read_text("utf-8").split("\n", 1)
    exam.write_text("question,A,B,C,D,E,answer\n" + text[1], "utf-8")
    assert cli.main(["eval", "--weights", str(tiny_base_dir), "--exam", str(exam), "--json"]) == 0
    printed = capsys.readouterr()
    json.loads(printed.out)
    assert "decomposed form" in printed.err


@pytest.mark.parametrize(
    "name, split", [("test.csv", "test"), ("doctor-valid.csv", "valid"), ("exam.csv", "not said")]
)
def test_eval_says_of_a_file_what_is_known_and_of_the_answers_what_made_them(
    name, split, tiny_base_dir, exam, tmp_path, capsys
):
    from medkor_jax.eval.report import Report
    from medkor_jax.run.named_model import open_model

    path, out = exam.rename(tmp_path / name), tmp_path / "answers.jsonl"
    asked = [
        "eval",
        "--weights",
        str(tiny_base_dir),
        "--exam",
        str(path),
        "--out",
        str(out),
        "--limit",
        "3",
        "--json",
    ]
    assert cli.main(asked) == 0
    summary, report = json.loads(capsys.readouterr().out.splitlines()[-1]), Report.read(out)
    assert summary["split"] == report.split == split
    made_by = dict(
        weights=str(tiny_base_dir),
        weights_digest=open_model(tiny_base_dir).digest,
        dtype="float32",
        limit=3,
        fewshot=None,
    )
    assert summary["made_by"].items() >= made_by.items() and summary["made_by"] == report.made_by
    assert len(summary["made_by"]["prompts"]) == 64


def test_eval_in_reason_mode_and_of_pairs(tiny_base_dir, exam, tmp_path, capsys):
    """A random model writes no reasoning and no translation; what it wrote is judged and stored all the same."""
    out, common = tmp_path / "out.jsonl", ["--limit", "2", "--max-new-tokens", "3", "--json"]
    shared = ["eval", "--weights", str(tiny_base_dir), "--out", str(out), *common]
    assert cli.main([*shared, "--exam", str(exam), "--mode", "reason", "--tags", "[", "]"]) == 0
    reasoning = json.loads(capsys.readouterr().out.splitlines()[-1])["reasoning"]
    assert (reasoning["max_new_tokens"], reasoning["both"]) == (3, 0.0)
    written = [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n")[:-1]]
    assert len(written) == 2 and all(
        1 <= row["n_tokens"] <= 3 and row["mode"] == "reason" for row in written
    )

    assert cli.main([*shared, "--pairs", "embedded", "--split", "test"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(s["direction"], s["metric"], s["n"]) for s in summary["scores"]] == [
        ("en-ko", "chrf", 2),
        ("en-ko", "bleu", 2),
        ("ko-en", "chrf", 2),
        ("ko-en", "bleu", 2),
    ]
    written = [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n")[:-1]]
    pairs = embedded.pairs("test")[:2]
    assert [row["text"] for row in written] == [en for _, en, _ in pairs] + [ko for *_, ko in pairs]


def test_scoring_without_adapters_is_scoring_the_base(tiny_base_dir, tmp_path):
    import jax.numpy as jnp

    from medkor_jax.commands.opening import base_of, open_scorer
    from medkor_jax.io.models import open_model, save_model

    base = open_model(tiny_base_dir)
    with open_scorer(base, dtype="float32", batch_size=2) as scorer:
        plain, params = scorer.next_logits([[2, 40, 50]], [5, 6]), scorer.params
    matrix = params.base["layers"]["q"]
    lora = {
        "q": {
            "a": jnp.ones((*matrix.shape[:-1], 2)) / 9,
            "b": jnp.ones((matrix.shape[0], 2, matrix.shape[-1])),
        }
    }
    adapted = save_model(tmp_path / "phase", params.replace(lora=lora, lora_scale=2.0), base.base)
    found = {}
    for adapters in (True, False):
        asked = adapted if adapters else base_of(adapted)
        with open_scorer(asked, dtype="float32", batch_size=2) as scorer:
            found[adapters] = scorer.next_logits([[2, 40, 50]], [5, 6])
    assert (found[False] == plain).all() and abs(found[True] - plain).max() > 1e-3


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["run", "--config", QUICKSTART, "--config.phase3.stepz=1"], 2, "stepz"),
        (["run", "--config", "nowhere/quickstart.py"], 2, "no config file"),
        (
            ["eval", "--weights", "embedded", "--exam", "exam.csv", "--shotz=3"],
            2,
            "not understood: --shotz=3",
        ),
        (
            [
                "eval",
                "--weights",
                "embedded",
                "--exam",
                "embedded",
                "--language",
                "en",
                "--shots",
                "3",
            ],
            1,
            "no few-shot file is named",
        ),
        (
            [
                "eval",
                "--weights",
                "embedded",
                "--exam",
                "embedded",
                "--language",
                "en",
                "--mode",
                "reason",
                "--shots",
                "3",
            ],
            1,
            "without any",
        ),
        (
            [
                "eval",
                "--weights",
                "embedded",
                "--exam",
                "embedded",
                "--language",
                "en",
                "--tags",
                "x",
                "x",
            ],
            1,
            "two different texts",
        ),
        (["eval", "--weights", "embedded", "--pairs", "nowhere.tsv"], 1, "no such file"),
        (["bench", "--cases", "txet"], 1, "'txet' is none of"),
        (["verify", "--weights", "random:tiny"], 1, "exists only here"),
        (["waive", "nowhere/verdict.json", "--reason", "x"], 3, "does not exist"),
        (["waive", "configs", "--reason", "x"], 1, "a directory without a verdict.json"),
        (["eval", "--weights", "configs/phase", "--exam", "embedded"], 1, "--language ko or en"),
        (["ask", "--weights", "embedded", "--exam", "embedded"], 1, "--language ko or en"),
        (["run", "--config", "configs/pipeline.py:phaze3"], 2, "'phaze3' is no phase"),
        (["init", "."], 1, "is there already"),
    ],
)
def test_a_failure_is_one_sentence_and_its_code(arguments, code, words, capsys):
    if arguments[0] == "verify":
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
    assert cli.main(arguments) == code
    error = capsys.readouterr().err
    assert error.startswith("medkor: ") and words in error and "Traceback" not in error


@pytest.mark.parametrize("name", ["configs/phase", "rums/quickstart"])
def test_a_directory_that_is_not_there_is_not_only_a_hub_that_is_not_reached(
    name, capsys, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = ["--exam", "embedded", "--language", "en"]
    assert cli.main(["eval", "--weights", name, *asked]) == 1
    said = capsys.readouterr().err
    near = " (nearest: configs/phase" if name.startswith("configs") else ""
    assert f"there is no {name} here{near}" in said and "as a hub id: " in said


def in_an_event_loop(strike):
    async def loop():
        asyncio.get_running_loop().call_soon(strike)
        await asyncio.sleep(30)

    asyncio.run(loop())


def within(guard, strike):
    with guard:
        strike()


AROUND = {
    "nothing": lambda strike: strike(),
    "a save": lambda strike: within(writable("x"), strike),
    "a restore": lambda strike: within(readable(pathlib.Path("x"), ""), strike),
    "a library's event loop": in_an_event_loop,
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_outside_training_is_one_sentence(number, around, monkeypatch, capsys, tmp_path):
    def strike():
        os.kill(os.getpid(), number)
        time.sleep(5)  # it comes at once

    def interrupted(self):
        hosts.at("exam english")
        AROUND[around](strike)

    monkeypatch.setattr(pipeline.Run, "all", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["run", "--config", QUICKSTART, f"--config.run_dir={tmp_path}"]) == 143
    said = capsys.readouterr().err
    assert said.startswith("medkor: ") and said.count("\n") == 1 and "at exam english; " in said
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_before_anything_has_begun_is_one_sentence(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_module", interrupted)
    assert cli.main(["runs"]) == 143
    assert capsys.readouterr().err == "medkor: interrupted before anything was begun\n"


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"medkor {importlib.metadata.version('medkor-jax')}\n"


def test_a_config_anywhere_finds_its_neighbours_and_ours(tmp_path):
    """In a process of its own: what one config imported is known to the next."""

    program = (
        "import sys; from medkor_jax.cli import main; sys.exit(main())"  # as the script `medkor`
    )

    def run(*words, at):
        ran = subprocess.run(
            [sys.executable, "-P", "-c", program, *words],
            cwd=at,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    quick = (REPOSITORY / "configs/quickstart.py").read_text()
    (tmp_path / "mine.py").write_text(quick)
    run("config", "--config", "mine.py", "--changed", at=tmp_path)
    run("init", "study", at=tmp_path)
    changed = tmp_path / "study/configs/common.py"
    changed.write_text(changed.read_text().replace('"runs/medkor"', '"runs/of-the-copy"'))
    said = run("config", "--config", "configs/phase3.py", "--changed", at=tmp_path / "study")
    assert 'config.run_dir = "runs/of-the-copy"' in said
    # Its own neighbours come first, also where it is called from a directory with configs of the same names.
    run("init", "another", at=tmp_path)
    path = str(tmp_path / "study/configs/phase3.py")
    assert run("config", "--config", path, "--changed", at=tmp_path / "another") == said.replace(
        "configs/phase3.py, resolved", f"{path}, resolved", 1
    )


def test_the_last_phase_of_a_config_is_named_behind_a_colon(capsys):
    assert cli.main(["config", "--config", "configs/pipeline.py:phase3", "--changed"]) == 0
    said = capsys.readouterr().out
    assert "config.phase3.title" in said and "config.phase4a_text" not in said


def test_no_command_is_bad_usage():
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 2


def test_an_export_by_several_processes_is_written_by_the_first(capsys, tmp_path):
    place = ["--coordinator", "localhost:1", "--processes", "2", "--process-id", "1"]
    assert (
        cli.main(
            [
                "export",
                "--weights",
                "nothing/there",
                "--to",
                "hf",
                "--out",
                str(tmp_path / "x"),
                *place,
            ]
        )
        == 0
    )
    assert "done by process 0 alone" in capsys.readouterr().out


def test_a_closed_gate_has_a_code_of_its_own(monkeypatch, capsys):
    def closed(self):
        raise GateClosed("phase2: 3 of 40")

    monkeypatch.setattr(pipeline.Run, "all", closed)
    assert cli.main(["run", "--config", QUICKSTART]) == 3
    assert capsys.readouterr().err == "medkor: phase2: 3 of 40\n"


def test_data_check_prints_a_table_and_fails_on_a_leak(tiny_base_dir, capsys):
    # The tiny tokenizer spells Korean in more tokens than the quick start has room for.
    check = [
        "data",
        "check",
        "--config",
        f"{QUICKSTART}:phase5d_exam",
        f"--config.weights={tiny_base_dir}",
        "--config.phase5d_exam.seq_len=320",
    ]
    assert cli.main(check) == 0
    table = capsys.readouterr().out
    assert "english" in table and "Apache-2.0" in table and table.rstrip().endswith("clean")
    assert cli.main([*check, "--config.held_out.korean.subset=valid"]) == 1
    table = capsys.readouterr().out
    assert "LEAK: ko-text:" in table and "NOT clean" in table


@pytest.mark.parametrize("arguments", [
    "eval --weights embedded --exam x --limit -1", "eval --weights embedded --exam x --batch-size 0", "eval --weights embedded --exam x --shots -2",
    "eval --weights embedded --exam x --mode reason --max-new-tokens 0", "ask --weights embedded --exam x --row 0",
    "verify --weights embedded --greedy -1", "verify --weights embedded --bound 0", "verify --weights embedded --bound nan",
    "export --weights embedded --to hf --out x --shard-gb 0", "bench --repeats 0", "data translate --weights x --exam x --to en --out x --batch-size 0",
])  # fmt: skip
def test_a_number_out_of_range_is_bad_usage_before_anything_is_opened(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments.split())
    assert ended.value.code == 2 and "expected" in capsys.readouterr().err


def in_a_process_of_its_own(code):
    """Returns what a fresh interpreter prints for `code`; what is imported is its own."""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ended.stdout


def test_the_overview_names_every_verb_and_imports_no_library():
    code = "import sys\nfrom medkor_jax import cli\ntry: cli.main(['--help'])\nfinally: print(sorted(sys.modules), file=sys.stdout)"
    printed = in_a_process_of_its_own(f"{code}".replace("finally", "except SystemExit"))
    words, modules = printed.rsplit("\n[", 1)
    assert all(verb.split()[0] in words for verb in cli.VERBS)
    assert not {"'jax'", "'numpy'", "'absl'", "'medkor_jax.commands.run'"} & set(
        modules.strip("]\n").split(", ")
    )


def test_a_verb_imports_its_own_file_and_jax_hears_what_was_set_before_it():
    code = """if True:
        import os, sys
        class Watch:
            def find_spec(self, name, *_):
                if name == "jax":
                    print("jax", os.environ.get("TF_CPP_MIN_LOG_LEVEL"), "medkor_jax.commands.waive" in sys.modules)
        sys.meta_path.insert(0, Watch())
        os.environ.pop("TF_CPP_MIN_LOG_LEVEL", None)
        from medkor_jax import cli
        print(cli.main(["waive", "nowhere/verdict.json", "--reason", "x"]))
        print(*sorted(name for name in sys.modules if name.startswith("medkor_jax.commands.")))
    """
    assert in_a_process_of_its_own(code).splitlines() == [
        "jax 2 False",
        "3",
        "medkor_jax.commands.arguments medkor_jax.commands.waive",
    ]


def test_every_verb_is_one_file_with_its_arguments_and_what_it_does():
    folder = pathlib.Path(cli.__file__).parent / "commands"
    doors = {
        file.stem
        for file in folder.glob("*.py")
        if "\ndef add_arguments(" in file.read_text("utf-8")
    }
    assert doors == {verb.module for verb in cli.VERBS.values()}
    for name, verb in cli.VERBS.items():
        module = importlib.import_module(f"medkor_jax.commands.{verb.module}")
        assert next(iter(inspect.signature(module.run).parameters)) == "arguments"
        assert module.__doc__.startswith(f"`medkor {name}`: ")


def test_only_what_several_processes_may_do_asks_who_they_are():
    asking = {
        name for name in cli.VERBS if "--coordinator" in _options(cli.make_parser(), name.split())
    }
    assert asking == {"run", "eval", "data translate", "preflight", "bench", "export"}


def _options(parser, words):
    for word in words:
        (choices,) = (
            action.choices
            for action in parser._actions
            if isinstance(action, argparse._SubParsersAction)
        )
        parser = choices[word]
    return parser._option_string_actions
