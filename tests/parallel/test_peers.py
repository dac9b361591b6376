"""What processes say to each other, with several of them as threads of this one, over real sockets."""

import concurrent.futures
import contextlib
import json
import socket
import threading
import time

import pytest

from medkor_jax.parallel import hub, peers
from medkor_jax.parallel.cluster import ClusterError, Place
from medkor_jax.parallel.peers import Peers


def free_port() -> int:
    """Returns a port that is free, as is the one after it."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("", 0))
            with contextlib.suppress(OSError):
                two.bind(("", one.getsockname()[1] + 1))
                return one.getsockname()[1]


class Group:
    """Processes as threads. ended: (process, code) of those that were made to end."""

    def __init__(self, n=3, limit=20.0):
        self.ended, self._arrived = [], threading.Condition()
        place = Place(f"localhost:{free_port()}", n, 0)
        self.places = [Place(place.coordinator, n, i) for i in range(n)]
        with concurrent.futures.ThreadPoolExecutor(n) as pool:
            self.all = list(
                pool.map(
                    lambda p: Peers(
                        p, time_limit_s=limit, end=lambda code, p=p: self._end(p.process_id, code)
                    ),
                    self.places,
                )
            )

    def _end(self, process, code):
        with self._arrived:
            self.ended.append((process, code))
            self._arrived.notify_all()

    def wait_for_ends(self, n):
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.ended) >= n, timeout=30), self.ended
        return sorted(self.ended)

    def each(self, call):
        with concurrent.futures.ThreadPoolExecutor(len(self.all)) as pool:
            return list(pool.map(call, self.all))


@pytest.fixture
def group():
    made = Group()
    yield made
    for one in made.all:
        one.leave()


def test_an_exchange_gives_all_values_to_all(group):
    for number in range(20):
        values = [[i, number] for i in range(3)]
        assert (
            group.each(lambda p, v=values: p.exchange("x", v[p.place.process_id])) == [values] * 3
        )


def test_an_exchange_waits_for_the_last(group):
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        early = [pool.submit(p.exchange, "x", None) for p in group.all[:2]]
        assert not concurrent.futures.wait(early, timeout=0.3).done
        group.all[2].exchange("x", None)
        assert not concurrent.futures.wait(early, timeout=20).not_done


def test_processes_that_do_different_things_are_ended_and_told_where(group, capsys):
    with concurrent.futures.ThreadPoolExecutor(3):
        for p, name in zip(
            group.all, ("phase0/model.json", "phase0/model.json", "phase1/model.json")
        ):
            threading.Thread(target=p.exchange, args=(name, None), daemon=True).start()
        assert group.wait_for_ends(3) == [(0, 1), (1, 1), (2, 1)]
    assert "process 2 is at 'phase1/model.json'" in capsys.readouterr().err


def test_one_that_fails_ends_the_others_with_its_words_and_code(group, capsys):
    group.all[0].where = "phase0/train, step 7"
    group.all[2].fail("failed at phase0/train, step 8: ValueError: bad row", 3)
    assert group.wait_for_ends(2) == [(0, 3), (1, 3)]
    said = capsys.readouterr().err
    assert (
        "process 2 of 3" in said and "failed at phase0/train, step 8: ValueError: bad row" in said
    )
    assert "process 0 of 3 ends too, at phase0/train, step 7" in said


def test_what_fails_everywhere_is_said_by_each_itself(group, capsys):
    group.each(lambda p: p.fail("failed: ConfigError", 2))
    assert not threading.Event().wait(hub.MOMENT_S + 0.5)
    assert group.ended == [] and "ends too" not in capsys.readouterr().err


@pytest.mark.parametrize("gone", [0, 1])
def test_one_that_vanishes_ends_the_others(group, gone, capsys):
    group.all[gone].is_ending = True
    if gone == 0:  # with its process, its sockets close
        for connection in group.all[0]._hub._sockets.values():
            connection.shutdown(socket.SHUT_RDWR)
    group.all[gone]._socket.shutdown(socket.SHUT_RDWR)
    assert {process for process, _ in group.wait_for_ends(2)} == {0, 1, 2} - {gone}
    assert (
        f"process {gone} of 3 (host {group.all[1].hosts[gone]}) ended without a word"
        in capsys.readouterr().err
    )


def test_one_that_is_silent_too_long_is_gone(monkeypatch):
    for module in (hub, peers):
        monkeypatch.setattr(module, "SILENCE_S", 1.0)
        monkeypatch.setattr(module, "BEAT_S", 0.2)
    group = Group(2)
    group.all[1].is_ending = True
    assert not threading.Event().wait(2.0) and group.ended == []  # who beats, lives
    group.all[1]._outgoing.put(None)  # its voice dies, its connection stays
    assert group.wait_for_ends(1) == [(0, 1)]


@pytest.mark.parametrize("asking", [0, 2])
def test_all_stop_after_the_same_step_whoever_was_told_to(group, asking):
    """Processes are some steps apart; those behind go on to where the first is, nobody is asked to go back."""
    begun = [0, 0, 0]

    def work(p):
        me = p.place.process_id
        for step in range(1, 10_000):
            if not p.pass_step(1, step):
                return step - 1
            begun[me] = step
            time.sleep(0.001 * (me + 1))
            if step == 50 + me and me == asking:
                p.ask_to_stop()

    stopped = group.each(work)
    assert stopped == [max(begun)] * 3 and max(begun) >= 50


def test_who_did_not_come_is_named():
    port = free_port()
    places = [Place(f"localhost:{port}", 4, i) for i in (0, 2)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(Peers, place, time_limit_s=1.5) for place in places]
        for one in asked:
            with pytest.raises(
                ClusterError,
                match=r"2 of 4 processes did not come to localhost:\d+ within 1.5 s: 1, 3\. Came: 0 \(.*\), 2 ",
            ):
                one.result(timeout=30)


def test_where_process_0_does_not_come_the_others_say_so():
    with pytest.raises(ClusterError, match="process 0 did not come: nothing answers at localhost"):
        Peers(Place(f"localhost:{free_port()}", 2, 1), time_limit_s=1.0)


@pytest.mark.parametrize(
    ("ids", "n", "words"),
    [
        ((0, 1, 1), (3, 3, 3), "two processes say that they are process 1"),
        ((0, 1), (2, 3), "one of 3 processes, process 0 as one of 2"),
    ],
)
def test_an_id_given_twice_and_another_number_of_processes_are_named(ids, n, words):
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        asked = [
            pool.submit(Peers, Place(f"localhost:{port}", total, i), time_limit_s=10)
            for i, total in zip(ids, n)
        ]
        for one in asked:
            with pytest.raises(ClusterError, match=words):
                one.result(timeout=30)


def test_a_stranger_at_the_door_is_not_let_in():
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(Peers, Place(f"localhost:{port}", 2, 0), time_limit_s=20)
        for said in (b"GET / HTTP/1.1\r\n\r\n", json.dumps({"kind": "bye"}).encode() + b"\n"):
            while True:
                with (
                    contextlib.suppress(OSError),
                    socket.create_connection(("localhost", port + 1), timeout=5) as stranger,
                ):
                    stranger.sendall(said)
                    break
        second = pool.submit(Peers, Place(f"localhost:{port}", 2, 1), time_limit_s=20)
        for one in (first, second):
            assert len(one.result(timeout=30).hosts) == 2
