import importlib.util
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np

from medkor_jax.parallel.mesh import MeshShape

SCRIPT = pathlib.Path(__file__).with_name("two_steps.py")


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def _import_script():
    spec = importlib.util.spec_from_file_location("two_steps", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_processes_of_two_devices_equal_one_of_four(quick, tmp_path):
    """The mesh is data 2 x tensor 2, so gradients are summed across the processes."""
    out, port = tmp_path / "found.npz", str(_free_port())
    root = pathlib.Path(__file__).parents[2]
    workers = [
        subprocess.Popen(
            [sys.executable, SCRIPT, out, port, "2", str(process)],
            env=quick | {"PATH": "", "PYTHONPATH": str(root), "HOME": str(tmp_path)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for process in range(2)
    ]  # fmt: skip
    expected = _import_script().train(MeshShape(data=2, fsdp=1, tensor=2))  # here, meanwhile
    try:
        logs = [worker.communicate(timeout=300)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(logs)
    assert jax.process_count() == 1 and jax.device_count() == 4
    with np.load(out) as found:
        assert set(found) == set(expected)
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
        assert expected["loss"][1] < expected["loss"][0]
        for name in set(expected) - {"loss"}:
            assert np.abs(expected[name]).max() > 1e-3, name
            np.testing.assert_allclose(found[name], expected[name], atol=1e-4 * np.abs(expected[name]).max(), err_msg=name)
