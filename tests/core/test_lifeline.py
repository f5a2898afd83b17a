"""Who does not come, comes twice or leaves is known on all, by name, in no time."""

import json
import queue
import socket
import threading

import pytest

from jaxlm.core.errors import CLUSTER, DATA, ClusterError, DataError
from jaxlm.core.job import Job
from jaxlm.core.lifeline import Cause, Lifeline


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Process:
    """One of a job, in a thread: what it was answered or raised, and what it heard after."""

    def __init__(self, port, number, count, timeout=10.0, decide=lambda says: says):
        self.heard = queue.SimpleQueue()
        job = Job(f"127.0.0.1:{port}", count, number, "a test")
        self.line = Lifeline(job, "127.0.0.1", port, self.heard.put)
        self.result = None
        self._timeout, self._decide, self._number = timeout, decide, number
        self._thread = threading.Thread(target=self._call)
        self._thread.start()

    def _call(self):
        try:
            self.result = self.line.call({"n": self._number}, self._decide, self._timeout)
        except ClusterError as error:
            self.result = error
        except DataError as error:
            self.result = error

    def answer(self):
        self._thread.join()
        return self.result


def all_of(port, count, **more):
    return [Process(port, number, count, **more) for number in reversed(range(count))][::-1]


def test_each_is_answered_from_what_all_say(port):
    def decide(says):
        return [{"sum": sum(each["n"] for each in says) + i} for i, each in enumerate(says)]

    found = [each.answer() for each in all_of(port, 5, decide=decide)]
    assert [each["sum"] for each in found] == [10, 11, 12, 13, 14]
    with socket.socket() as taken:  # as jax takes the port afterwards
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()


def test_the_missing_are_named_on_all(port):
    there = [Process(port, number, 4, timeout=1.0) for number in (0, 2)]
    for each in there:
        error = each.answer()
        assert str(error).startswith("process 1, 3 of 4: did not come within 1 s; here are 0 (")
        assert error.code == CLUSTER


def test_two_with_one_number_are_named(port):
    there = [Process(port, number, 3) for number in (1, 1, 0)]
    found = {str(each.answer()).partition(": ")[0] for each in there}
    assert "process 1" in found and all(isinstance(each.answer(), ClusterError) for each in there)


def test_what_is_decided_against_is_raised_on_all(port):
    def decide(says):
        raise DataError("data.train", "differs")

    for each in all_of(port, 3, decide=decide):
        assert str(each.answer()) == "data.train: differs" and each.answer().code == DATA


@pytest.mark.parametrize("first", [0, 2])
def test_the_word_of_the_first_that_fails_reaches_all(port, first):
    there = all_of(port, 4)
    for each in there:
        each.answer()
    there[first].line.leave(DATA, "text.jsonl:3: not JSON")
    for number, each in enumerate(there):
        if number != first:
            heard = each.heard.get(timeout=10)
            assert heard == Cause(first, socket.gethostname(), DATA, "text.jsonl:3: not JSON")
    assert there[first].heard.empty()


def test_one_that_ends_well_ends_alone(port):
    there = all_of(port, 3)
    for each in there:
        each.answer()
    for number in (1, 2, 0):
        there[number].line.leave(0, "")
    assert all(each.heard.empty() for each in there)


def told(port, *lines):
    """A connection of no jaxlm, that says these lines."""
    while True:
        try:
            stranger = socket.create_connection(("127.0.0.1", port), timeout=10)
            break
        except ConnectionRefusedError:
            continue
    for line in lines:
        stranger.sendall(line.encode() + b"\n")
    return stranger


def test_one_that_is_killed_is_missed_by_name(port):
    there = [Process(port, number, 3) for number in (0, 1)]
    killed = told(port, json.dumps({"process": 2, "host": "node7", "processes": 3}))
    assert all("error" not in each.answer() for each in there)
    killed.close()
    for each in there:
        cause = each.heard.get(timeout=10)
        assert (cause.process, cause.host, cause.code) == (2, "node7", CLUSTER)
        assert "gone without a word" in cause.line


def test_one_that_leaves_before_all_have_come_is_named(port):
    there = [Process(port, number, 4) for number in (0, 1)]
    told(port, json.dumps({"process": 2, "host": "node7", "processes": 4})).close()
    for each in there:
        assert str(each.answer()).startswith("process 2 (node7): is gone without a word")


@pytest.mark.parametrize(
    "line",
    ["GET / HTTP/1.1", "[]", '{"process": 9, "host": "x"}', '{"process": 0, "host": "x"}', ""],
)
def test_strangers_are_not_heard(port, line):
    first = Process(port, 0, 2)
    told(port, line)
    second = Process(port, 1, 2)
    assert first.answer()["n"] == 0 and second.answer()["n"] == 1


def test_a_port_that_is_taken_and_a_coordinator_that_is_not_there(port):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        error = Process(port, 0, 2).answer()
        what = f"coordinator: process 0 cannot listen on 127.0.0.1:{port} (Address already in use)"
        assert str(error).startswith(what)
    error = Process(port, 1, 2, timeout=0.3).answer()
    assert str(error).startswith(f"coordinator: nobody answers at 127.0.0.1:{port} after 0.3 s")


def test_another_program_at_the_coordinators_address_is_said_to_be_one(port):
    with socket.create_server(("127.0.0.1", port)) as other:
        process = Process(port, 1, 2)
        connection, _ = other.accept()
        with connection:
            connection.sendall(b"HTTP/1.0 400 Bad request\n")
            what = f"coordinator: what answers at 127.0.0.1:{port} is another program; use another"
            assert str(process.answer()).startswith(what)
