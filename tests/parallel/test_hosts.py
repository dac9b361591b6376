"""Runs of several real processes: what one process gives they give, and they end together whatever happens to one."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from medkor_jax.io.checkpoint import abstract_like, restore_tree, stored_shapes
from medkor_jax.model.params import leaf_paths
from medkor_jax.parallel.mesh import MeshShape, make_mesh, shard_tree
from medkor_jax.run.named_model import open_model
from medkor_jax.train.metrics import read_metrics

from .test_peers import free_port

HERE = pathlib.Path(__file__).parent
CONFIG = HERE / "tiny_phases.py"
PAIR = (1, 2, 2)  # a mesh over both of two processes of two devices


@pytest.fixture(scope="module")
def start(quick, tiny_base_dir, tmp_path_factory):
    """start(run_dir, overrides, devices=.., processes=.., strike={process: "WHERE=SIGNAL"}): the processes of one run, begun.

    They share the tests' cache of compiled programs; compiling is what takes the time here.
    """
    cache, begun = tmp_path_factory.mktemp("cache"), []

    def make(
        run_dir,
        *overrides,
        mesh=PAIR,
        devices=2,
        processes=2,
        strike=None,
        after=0.0,
        each=None,
        command=(),
    ):
        sizes = [f"--config.mesh.{axis}={n}" for axis, n in zip(("data", "fsdp", "tensor"), mesh)]
        place = (
            {"MEDKOR_COORDINATOR": f"localhost:{free_port()}", "MEDKOR_PROCESSES": str(processes)}
            if processes > 1
            else {}
        )
        several, whole = [], command or ("run", "--config", str(CONFIG), *sizes)
        for process in range(processes):
            environment = os.environ | quick | place | {
                "MEDKOR_PROCESS_ID": str(process) if place else "", "RUN_DIR": str(run_dir), "WEIGHTS": str(tiny_base_dir), "MEDKOR_CACHE": str(cache),
                "OWN_PROCESS": "1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{quick['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
                "PYTHONPATH": str(HERE.parents[1]),
                "STRIKE": (strike or {}).get(process, ""), "STRIKE_AFTER": str(after), "MEDKOR_WAIT_S": "120",
            } | (each or {}).get(process, {})  # fmt: skip
            log = open(f"{run_dir}.{len(begun)}.log", "w+")
            one = subprocess.Popen(
                [sys.executable, "-m", "medkor_jax.cli", *whole, *overrides],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
            one.log = log
            several.append(one)
            begun.append(one)
        return several

    yield make
    for one in begun:
        one.kill()
        one.wait()
        one.log.close()


def ended(processes, limit=600):
    """Returns the exit code and the output of each."""
    codes = [one.wait(timeout=limit) for one in processes]
    return codes, [pathlib.Path(one.log.name).read_text() for one in processes]


def trees_of(run_dir):
    """Returns {phase/leaf: array} of every phase's adapters and of the merged base, and each verdict's words."""
    mesh, found = make_mesh(MeshShape(data=1), jax.devices()[:1]), {}
    for place in sorted([*run_dir.glob("phase*/adapters"), *run_dir.glob("bases/*/tree")]):
        stored = stored_shapes(place)
        name = "base" if place.name == "tree" else place.parent.name
        found |= {
            f"{name}/{path}": np.asarray(leaf)
            for path, leaf in leaf_paths(
                restore_tree(place, abstract_like(stored, shard_tree(stored, mesh)))
            ).items()
        }
    words = {
        path.parent.name: json.loads(path.read_text())["judgement"]["words"]
        for path in run_dir.glob("phase*/verdict.json")
    }
    return found, words


def require_same(run_dir, expected, bound=2e-4):
    """bound: of the largest difference in a leaf, against its largest value; float32 sums in another order give 1e-5 here."""
    found, words = trees_of(run_dir)
    trees, expected_words = trees_of(expected)
    assert words == expected_words and found.keys() == trees.keys() and len(words) >= 1
    worst = {}
    for path, value in trees.items():
        largest = max(np.abs(value).max(), 1e-3)
        np.testing.assert_allclose(found[path], value, rtol=0, atol=bound * largest, err_msg=path)
        phase = path.split("/")[0]
        worst[phase] = max(
            worst.get(phase, 0.0), float(np.abs(found[path] - value).max() / largest)
        )
    print(
        "largest difference, against the largest value of its leaf:",
        {phase: f"{one:.1e}" for phase, one in worst.items()},
    )


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
    """All phases on one device, nothing interrupted."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    codes, logs = ended(start(run_dir, mesh=(1, 1, 1), devices=1, processes=1))
    assert codes == [0], logs[0][-3000:]
    return run_dir


@pytest.fixture(scope="module")
def one_phase(start, tmp_path_factory):
    """Phase 0 on two processes, nothing interrupted."""
    run_dir = tmp_path_factory.mktemp("one") / "run"
    codes, logs = ended(start(run_dir, "--config.run=('phase0',)"))
    assert codes == [0, 0], logs[0][-3000:] + logs[1][-3000:]
    return run_dir


def test_two_processes_give_what_one_gives(start, alone, tmp_path):
    codes, logs = ended(start(tmp_path / "run"))
    assert codes == [0, 0], logs[0][-3000:] + logs[1][-3000:]
    require_same(tmp_path / "run", alone)
    assert "In all:" in logs[0] and "exam" not in logs[1] and "phase" not in logs[1]  # said once
    rows = [row["step"] for row in read_metrics(tmp_path / "run/phase3/train")]
    assert rows == [1, 2, 3]  # written once
    assert not list(tmp_path.glob("run/.hosts-*"))
    model = open_model(
        tmp_path / "run"
    )  # by one process, which digests whole what two digested in pieces
    assert model.load(np.float32, make_mesh(MeshShape(data=1), jax.devices()[:1])).expand


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(4, 1, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2)], ids=str)
def test_every_mesh_gives_what_one_device_gives(start, alone, tmp_path, mesh):
    codes, logs = ended(start(tmp_path / "run", mesh=mesh, devices=4, processes=1))
    assert codes == [0], logs[0][-3000:]
    require_same(tmp_path / "run", alone)


LAYOUTS = {
    "one device": dict(mesh=(1, 1, 1), devices=1, processes=1),
    "data 4": dict(mesh=(4, 1, 1), devices=4, processes=1),
    "fsdp 2, tensor 2": dict(mesh=(1, 2, 2), devices=4, processes=1),
    "two processes": dict(mesh=PAIR, devices=2, processes=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("first", LAYOUTS)
def test_each_layout_goes_on_where_another_stood(start, one_phase, tmp_path, first, second):
    _goes_on(start, one_phase, tmp_path, first, second)


@pytest.mark.parametrize(
    ("first", "second"), [("two processes", "one device"), ("fsdp 2, tensor 2", "two processes")]
)
def test_a_checkpoint_of_one_layout_goes_on_in_another(start, one_phase, tmp_path, first, second):
    _goes_on(start, one_phase, tmp_path, first, second)


def _goes_on(start, one_phase, tmp_path, first, second):
    """SIGTERM after step 2 of phase 0 saves step 2 or 3 with the data cursor; the other layout ends with the same trees."""
    run, layout = tmp_path / "run", LAYOUTS[first]
    codes, logs = ended(
        start(
            run,
            "--config.run=('phase0',)",
            strike={layout["processes"] - 1: "phase0/train, step 2=SIGTERM"},
            **layout,
        )
    )
    assert set(codes) == {143}, logs
    codes, logs = ended(start(run, "--config.run=('phase0',)", **LAYOUTS[second]))
    assert set(codes) == {0}, logs
    require_same(run, one_phase)


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("killed", "where", "after"),
    [
        (0, "phase0/train, step 2", 0.0),
        (1, "phase0/train, saving step 2", 0.02),
        (1, "phase0, merging", 0.1),
        (0, "exam english", 0.0),
        pytest.param(1, "phase0/train, step 2", 0.0, marks=slow),
        pytest.param(0, "phase0/train, saving step 3", 0.02, marks=slow),
        pytest.param(0, "phase0, merging", 0.1, marks=slow),
        pytest.param(1, "phase0, concluding", 0.0, marks=slow),
    ],
)
def test_one_is_killed_and_the_other_says_so_and_the_pair_goes_on(
    start, one_phase, tmp_path, killed, where, after
):
    run = tmp_path / "run"
    processes = start(
        run, "--config.run=('phase0',)", strike={killed: f"{where}=SIGKILL"}, after=after
    )
    assert processes[killed].wait(timeout=600) == -signal.SIGKILL
    began = time.monotonic()
    codes, logs = ended(processes, limit=60)
    assert codes[1 - killed] == 1 and time.monotonic() - began < 60
    assert (
        f"process {killed} of 2 (host " in logs[1 - killed]
        and "ended without a word" in logs[1 - killed]
    ), logs[1 - killed][-2000:]
    assert (
        "Check failure stack trace" not in logs[1 - killed] and "Traceback" not in logs[1 - killed]
    )
    codes, logs = ended(start(run, "--config.run=('phase0',)"))
    assert codes == [0, 0], logs
    require_same(run, one_phase)


@slow
@pytest.mark.parametrize("told", [0, 1])
def test_sigterm_at_the_last_step_of_the_last_stage_is_not_swallowed(
    start, one_phase, tmp_path, told
):
    run = tmp_path / "run"
    codes, logs = ended(
        start(run, "--config.run=('phase0',)", strike={told: "phase0/train, saving step 3=SIGTERM"})
    )
    assert codes == [143, 143], logs
    assert "stopped by SIGTERM at the end of phase0/train" in logs[told], logs
    assert "Traceback" not in "".join(logs)
    codes, logs = ended(start(run, "--config.run=('phase0',)"))
    assert codes == [0, 0], logs
    require_same(run, one_phase)


@pytest.mark.parametrize("told", [pytest.param(0, marks=slow), 1])
def test_sigterm_to_one_saves_and_ends_both_with_the_same_step(start, one_phase, tmp_path, told):
    run = tmp_path / "run"
    codes, logs = ended(
        start(run, "--config.run=('phase0',)", strike={told: "phase0/train, step 1=SIGTERM"})
    )
    assert codes == [143, 143], logs
    said = [log[log.index("phase0/train stopped at step") :].split(",")[0] for log in logs]
    assert said[0] == said[1] and max(
        int(p.name) for p in (run / "phase0/train/checkpoints").iterdir()
    ) == int(said[0].split()[4])
    codes, logs = ended(start(run, "--config.run=('phase0',)"))
    assert codes == [0, 0], logs
    require_same(run, one_phase)


def test_sigterm_between_stages_ends_both_and_nothing_is_lost(start, one_phase, tmp_path):
    run = tmp_path / "run"
    codes, logs = ended(start(run, "--config.run=('phase0',)", strike={1: "exam english=SIGTERM"}))
    assert codes == [143, 143] and "stopped by SIGTERM at exam english" in logs[1], logs
    codes, logs = ended(start(run, "--config.run=('phase0',)"))
    assert codes == [0, 0], logs
    require_same(run, one_phase)


def test_an_exam_by_two_processes_is_answered_and_written_once(start, tiny_base_dir, tmp_path):
    asked = (
        "eval",
        "--weights",
        str(tiny_base_dir),
        "--exam",
        "embedded",
        "--language",
        "en",
        "--limit",
        "12",
        "--mode",
        "reason",
        "--max-new-tokens",
        "5",
    )
    codes, logs = ended(
        start(tmp_path / "two", "--out", str(tmp_path / "two.jsonl"), command=asked)
    )
    assert codes == [0, 0], logs
    codes, alone = ended(
        start(
            tmp_path / "one",
            "--out",
            str(tmp_path / "one.jsonl"),
            command=asked,
            processes=1,
            devices=1,
        )
    )
    assert codes == [0], alone
    assert (tmp_path / "two.jsonl").read_text() == (tmp_path / "one.jsonl").read_text() and len(
        (tmp_path / "two.jsonl").read_text().splitlines()
    ) >= 12
    assert "of 12" in logs[0] and "of 12" not in logs[1]


def test_a_translation_by_two_processes_is_written_once(start, tiny_base_dir, tmp_path):
    """A random model translates nothing, which is said; what it wrote stands in the work file, a line a question."""
    asked = (
        "data",
        "translate",
        "--weights",
        str(tiny_base_dir),
        "--exam",
        "embedded",
        "--split",
        "valid",
        "--to",
        "en",
        "--limit",
        "6",
        "--batch-size",
        "4",
        "--max-new-tokens",
        "4",
    )
    codes, logs = ended(
        start(tmp_path / "two", "--out", str(tmp_path / "two.jsonl"), command=asked)
    )
    assert codes == [1, 1] and all(
        "none of the 6 translated questions passes" in log for log in logs
    ), logs
    codes, alone = ended(
        start(
            tmp_path / "one",
            "--out",
            str(tmp_path / "one.jsonl"),
            command=asked,
            processes=1,
            devices=1,
        )
    )
    assert codes == [1], alone
    written = [(tmp_path / f"{name}.jsonl.work.jsonl").read_text() for name in ("two", "one")]
    assert written[0] == written[1] and len(written[0].splitlines()) == 7


@pytest.mark.slow
def test_an_exam_translated_in_a_run_of_two_processes_is_what_one_makes(start, tmp_path):
    """A random model translates nothing: of these rows all but one hold no word to translate, and pass."""
    rows = [
        {
            "question": f"Hb {10 + i}.5 g/dL, MCV {70 + i}?",
            **dict(zip("ABCD", ("CT", "MRI", "EKG", "EEG"))),
        }
        for i in range(20)
    ]
    exam = tmp_path / "exam.jsonl"
    rows.append(rows[0] | {"question": "다음 중 3개는?"})
    lines = (json.dumps(row | {"answer": "A"}, ensure_ascii=False) + "\n" for row in rows)
    exam.write_text("".join(lines), "utf-8")
    source = dict(path=exam, language="ko", split="train", limit=0, translated_to="en")
    asked = [f"--config.exams.english.source.{key}={value}" for key, value in source.items()]
    asked += ["--config.run=('phase0',)", "--config.phase0.steps=1"]
    two, one = (
        ended(start(tmp_path / name, *asked, processes=n, **how))
        for name, n, how in (("two", 2, {}), ("one", 1, dict(mesh=(1, 1, 1), devices=1)))
    )
    assert two[0] == [0, 0] and one[0] == [0], (two, one)
    assert "english: translated 21 of 21" in two[1][0]
    assert "translated 21 of 21" not in two[1][1]
    for file in ("english.jsonl", "english.jsonl.work.jsonl", "english.jsonl.failed.jsonl"):
        made = [(tmp_path / name / "translated" / file).read_bytes() for name in ("two", "one")]
        assert made[0] == made[1] and (made[0] or "failed" in file), file
    report = json.loads((tmp_path / "two/translated/english.json").read_text())
    assert report["n_questions"] == 21 and report["n_passed"] in (20, 21)


def test_one_that_fails_is_named_with_its_error_by_all(start, one_phase, tmp_path):
    codes, logs = ended(
        start(
            tmp_path / "run", "--config.run=('phase0',)", strike={1: "phase0/train, step 2=RAISE"}
        )
    )
    assert codes == [1, 1]
    assert (
        "medkor: process 1 of 2 (host " in logs[0]
        and "failed at phase0/train, step 2: ValueError: struck down. So process 0 of 2 ends too"
        in logs[0]
    ), logs[0][-2000:]
    assert logs[1].rstrip().endswith("): struck down")


def test_what_fails_on_all_is_said_in_its_own_words(start, tmp_path):
    codes, logs = ended(start(tmp_path / "run", "--config.run=('phase9',)"))
    assert codes == [2, 2]
    assert all("ends too" not in log and "phase9" in log.splitlines()[-1] for log in logs), logs


def test_hosts_that_do_not_share_the_run_directory_are_told_at_the_start(start, tmp_path):
    codes, logs = ended(
        start(
            tmp_path / "run",
            "--config.run=('phase0',)",
            each={1: {"RUN_DIR": str(tmp_path / "elsewhere")}},
        )
    )
    assert codes == [2, 2]
    assert (
        "is not shared (process 1 (" in logs[0] and "does not see what process 0 wrote" in logs[0]
    )
    assert not (tmp_path / "run/phase0").exists()


def test_a_run_directory_that_cannot_be_is_said_by_preflight_on_both(start, tmp_path):
    """What process 0 alone stumbles over reaches the other as itself, and the two stay together."""
    (tmp_path / "run").write_text("a file")
    codes, logs = ended(
        start(
            tmp_path / "run", command=("preflight", "--config", str(CONFIG), "--config.mesh.fsdp=2")
        )
    )
    assert codes == [1, 1], logs
    assert any(
        "run directory" in line and "FAILS" in line and "File exists" in line
        for line in logs[0].splitlines()
    ), logs[0][-2000:]
    assert (
        "no longer do the same" not in logs[0] + logs[1]
        and "this run would not get through" in logs[0]
    )


def test_hosts_with_different_settings_are_told_at_the_start(start, tmp_path):
    codes, logs = ended(
        start(tmp_path / "run", "--config.run=('phase0',)", each={1: {"SEED": "1"}})
    )
    assert codes == [2, 2]
    assert "config is not the same on all hosts" in logs[0] and "process 1 (" in logs[0]
    assert not (tmp_path / "run/phase0").exists()
