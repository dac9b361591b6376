import os
import threading

import pytest

from medkor_jax.data import workers
from medkor_jax.data.workers import WorkerError, run_all


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setenv("MEDKOR_WORKERS", "2")


def test_answers_come_in_the_order_of_the_tasks(two):
    tasks = [f"/tmp/{i}/x" for i in range(20)]
    assert run_all("posixpath:basename", tasks) == ["x"] * 20 and run_all(
        "posixpath:dirname", tasks
    ) == [f"/tmp/{i}" for i in range(20)]
    assert run_all("os:getpid", []) == []


def test_one_worker_or_one_task_is_this_process(two, monkeypatch):
    here = f"{__name__}:here"
    monkeypatch.setitem(
        __import__("sys").modules,
        __name__,
        __import__("types").SimpleNamespace(here=lambda _: os.getpid()),
    )
    assert run_all(here, [1]) == [os.getpid()]
    monkeypatch.setenv("MEDKOR_WORKERS", "1")
    assert run_all(here, [1, 2]) == [os.getpid()] * 2
    assert workers.n_workers() == 1


def test_what_goes_wrong_in_a_process_is_said_here(two):
    with pytest.raises(WorkerError, match="ended with 1. .*FileNotFoundError"):
        run_all("os:listdir", ["/", "/nowhere-at-all"])
    with pytest.raises(WorkerError, match="ended with 7"):
        run_all("os:_exit", [7, 7])


def test_it_works_from_a_thread(two):
    found = []
    thread = threading.Thread(
        target=lambda: found.append(run_all("os.path:basename", ["a/b", "a/c"]))
    )
    thread.start()
    thread.join()
    assert found == [["b", "c"]]
