"""launch/notebook.ipynb, run from its first cell to its last on the CPU with a tiny model."""

import ast
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

nbformat = pytest.importorskip("nbformat", reason="comes with the extra `test`")

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOK = ROOT / "launch/notebook.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def parameters(notebook):
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    return cell


def test_it_is_valid_has_no_outputs_and_names_configs_that_are_there(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            ast.parse(cell.source)
            assert not cell.outputs and cell.execution_count is None
    values = {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse(parameters(notebook).source).body}
    assert (ROOT / values["CONFIG"].split(":")[0]).is_file()
    assert set(values) >= {"CONFIG", "OVERRIDES", "SOURCE", "ASK", "EXPORT", "UPLOAD_TO"}


def test_the_stop_button_lets_it_save(notebook, tmp_path):
    """The kernel gets SIGINT; medkor gets SIGTERM, once."""
    (tmp_path / "medkor_jax").mkdir()
    (tmp_path / "medkor_jax/__init__.py").touch()
    (tmp_path / "medkor_jax/cli.py").write_text(
        "import signal, sys, time\n"
        "for number in (signal.SIGINT, signal.SIGTERM):\n"
        "    signal.signal(number, lambda number, _: (print('got', number), time.sleep(0.5), sys.exit(143)))\n"
        "print('a step')\n"
        "time.sleep(60)\n"
    )
    (cell,) = [cell for cell in notebook.cells if "def medkor(" in cell.source]
    before = f"import os, pathlib, signal, subprocess, sys\ncheckout = pathlib.Path({str(tmp_path)!r})\n"
    command = [sys.executable, "-u", "-c", f"{before}{cell.source}\nmedkor('run')"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    kernel = subprocess.Popen(command, start_new_session=True, cwd=tmp_path, **pipes)
    assert kernel.stdout.readline() == "a step\n"
    os.killpg(kernel.pid, signal.SIGINT)  # as a notebook server does
    out, err = kernel.communicate(timeout=30)
    assert out.count("got") == 1 and f"got {signal.SIGTERM.value}" in out
    assert "RuntimeError: medkor run ended with exit code 143: stopped and saved; run this cell again to go on" in err


def execute(notebook, directory, quick, monkeypatch, **values):
    nbclient = pytest.importorskip("nbclient", reason="comes with the extra `test`")
    pytest.importorskip("ipykernel", reason="comes with the extra `test`")
    cell = parameters(notebook)
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in values.items())
    # The kernel of this interpreter, whatever kernels the user has.
    kernels = directory / "jupyter/kernels/python3"
    kernels.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernels / "kernel.json").write_text(json.dumps(dict(argv=argv, display_name="x", language="python")))
    for name, value in {
        "JUPYTER_PATH": str(directory / "jupyter"), "IPYTHONDIR": str(directory / "ipython"), "JAX_PLATFORMS": "cpu",
        "JUPYTER_RUNTIME_DIR": str(directory / "runtime"), "JUPYTER_PLATFORM_DIRS": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XLA_FLAGS", quick["XLA_FLAGS"])
    monkeypatch.delenv("HF_TOKEN", raising=False)
    stands = {"metadata": {"path": str(ROOT / "launch")}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=stands).execute()
    text = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            text.append(output.get("text") or str(output.get("data", {}).get("text/html", "")))
    return "".join(text)


def test_it_runs_looks_asks_and_exports(notebook, quick, tiny_base_dir, tmp_path, monkeypatch):
    run_dir, export = tmp_path / "run", tmp_path / "export"
    values = dict(weights=tiny_base_dir, run_dir=run_dir, log_every=1) | {"phase0.steps": 3}
    overrides = [f"--config.{key}={value}" for key, value in values.items()]
    told = dict(CONFIG="configs/quickstart.py:phase0", OVERRIDES=overrides, EXPORT=str(export))
    shown = execute(notebook, tmp_path, quick, monkeypatch, **told)
    assert f"{ROOT}, cpu, Python" in shown and "no HF_TOKEN" in shown
    assert "clean" in shown and "phase0/train: training lora" in shown, shown  # the table of the data, the run
    assert f"What the run in {run_dir} did" in shown and "<b>phase0/train</b>: loss" in shown and "<polyline points=" in shown
    assert "MB" in shown and (export / "model.safetensors").is_file() and (export / "tokenizer.json").is_file()


def test_a_failure_stops_the_notebook_with_its_meaning(notebook, quick, tmp_path, monkeypatch):
    from nbclient.exceptions import CellExecutionError

    with pytest.raises(CellExecutionError, match="medkor data ended with exit code 2: the config or the command is wrong"):
        execute(notebook, tmp_path, quick, monkeypatch, CONFIG="configs/nowhere.py")
