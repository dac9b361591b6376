import os
import pathlib
import subprocess
import sys
import time

import pytest

from medkor_jax.data import kept
from medkor_jax.data.kept import CacheError, keep, key_of, size_bytes


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDKOR_CACHE", str(tmp_path / "cache"))


def maker(words="made", made=None):
    def make(directory):
        if made is not None:
            made.append(directory)
        (directory / "a.npy").write_text(words, "utf-8")
        (directory / "b.texts").write_text(words * 2, "utf-8")

    return make


def test_an_entry_is_made_once_and_found_again():
    made = []
    place = keep("rows", "k", maker(made=made))
    assert keep("rows", "k", maker(made=made)) == place and len(made) == 1
    assert (place / "a.npy").read_text("utf-8") == "made" and size_bytes(place) > 12
    assert keep("rows", "other", maker("else", made)) != place and len(made) == 2


@pytest.mark.parametrize("damage", [
    lambda place: (place / "a.npy").write_text("madE", "utf-8"),
    lambda place: (place / "b.texts").write_text("mademad", "utf-8"),
    lambda place: (place / "b.texts").unlink(),
    lambda place: (place / kept.LIST).write_text("{}", "ascii"),
    lambda place: (place / kept.LIST).unlink(),
    lambda place: (place / kept.LIST).write_text((place / kept.LIST).read_text("ascii").replace("[4,", "[5,"), "ascii"),
])  # fmt: skip
def test_a_damaged_entry_is_made_anew(damage):
    made = []
    place = keep("rows", "k", maker(made=made))
    damage(place)
    assert not kept.is_whole(place)
    assert keep("rows", "k", maker(made=made)) == place and len(made) == 2 and kept.is_whole(place)


def test_what_fails_leaves_nothing_behind():
    def fail(directory):
        maker()(directory)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        keep("rows", "k", fail)
    parent = kept.cache_directory() / "rows"
    assert [file.name for file in parent.iterdir()] == ["k.lock"]
    (parent / "k.1234.part").mkdir()  # of a process that was killed
    keep("rows", "k", maker())
    assert sorted(file.name for file in parent.iterdir()) == ["k", "k.lock"]


def test_where_nothing_can_be_kept_it_says_what_to_set(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDKOR_CACHE", str(tmp_path / "file"))
    with pytest.raises(CacheError, match="cannot keep what was read .* set MEDKOR_CACHE"):
        keep("rows", "k", maker())
    monkeypatch.setenv("MEDKOR_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        FileNotFoundError, match="gone.csv"
    ):  # what was to be read is not the cache's fault
        keep("rows", "k", lambda directory: open("gone.csv"))


WAITING = """
import pathlib, sys, time
from medkor_jax.data.kept import keep
def make(directory):
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(float(sys.argv[2]))
    (directory / "a.npy").write_text("theirs")
keep("rows", "k", make)
"""


@pytest.mark.parametrize("is_killed", [False, True])
def test_processes_that_want_the_same_entry_wait_for_one_and_go_on_where_it_dies(
    is_killed, tmp_path
):
    begun, root = tmp_path / "begun", pathlib.Path(kept.__file__).parents[2]
    seconds = "60" if is_killed else "0.5"
    other = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(begun), seconds],
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    try:
        while not begun.exists():
            assert other.poll() is None
            time.sleep(0.02)
        if is_killed:
            other.kill()
            other.wait()
        place = keep("rows", "k", maker("ours"))
        assert (place / "a.npy").read_text("utf-8") == ("ours" if is_killed else "theirs")
    finally:
        other.kill()
        other.wait()


def test_without_locks_the_work_may_be_done_twice_and_nothing_else(monkeypatch):
    def no_lock(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(kept.fcntl, "flock", no_lock)

    def slow(directory):
        keep("rows", "k", maker("theirs"))  # another process comes and is quicker
        maker("ours")(directory)

    place = keep("rows", "k", slow)
    assert (place / "a.npy").read_text("utf-8") == "theirs" and kept.is_whole(place)
    (place / "a.npy").write_text("mad", "utf-8")
    assert kept.is_whole(keep("rows", "k", maker())) and len(list(place.parent.glob("*.part"))) == 0


def test_a_key_changes_with_every_part_and_with_the_code(monkeypatch):
    assert key_of("a", 1) == key_of("a", 1) != key_of("a", 2)
    before = key_of("a")
    monkeypatch.setattr(kept, "code_digest", lambda: "other code")
    assert key_of("a") != before
