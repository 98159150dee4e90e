"""All who come get one answer: go on, or the sentence that says who is missing or differs."""

import json
import socket
import threading
import time

import pytest

from vidlang.core.meeting import Place, meet

SAME = {"the code": "a1", "the packages": "jax 1"}


@pytest.fixture
def address():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def answers(address, come, seconds=5.0, count=None):
    """{what came: its answer, "" to go on} when `come`, a list of (process, facts), meet at one address."""
    found = [None] * len(come)

    def one(number, process, facts):
        place = Place(address, count or len(come), process, "VIDLANG_PROCESS=…")
        try:
            meet(place, facts, seconds)
            found[number] = ""
        except ValueError as error:
            found[number] = str(error)

    threads = [threading.Thread(target=one, args=(number, *each)) for number, each in enumerate(come)]
    for thread in reversed(threads):  # process 0 comes last: the others wait for it
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join(timeout=30)
    return found


def test_those_who_agree_go_on(address):
    assert answers(address, [(process, SAME) for process in range(5)]) == [""] * 5


def test_alone_nobody_is_waited_for(address):
    began = time.monotonic()
    meet(Place(address, 1, 0, ""), SAME, 100)
    assert time.monotonic() - began < 1


def test_who_is_missing_is_told_to_all_who_came(address):
    began = time.monotonic()
    first, second = answers(address, [(0, SAME), (2, SAME)], seconds=1.0, count=4)
    assert time.monotonic() - began < 5
    assert first == second
    host = socket.gethostname()
    assert f"2 of 4 processes have not come to {address}: 1, 3; here are 0 ({host}), 2 ({host})" in first
    assert "VIDLANG_PROCESS=…" in first


def test_without_process_0_the_address_that_was_tried_is_told(address):
    (found,) = answers(address, [(1, SAME)], seconds=0.5, count=2)
    assert f"process 1 of 2 on {socket.gethostname()} did not meet process 0 at {address} within 0.5 s" in found
    assert "Connection refused" in found


def test_a_difference_is_told_to_all_with_its_name_process_and_host(address):
    other = {**SAME, "the packages": "jax 2"}
    found = answers(address, [(0, SAME), (1, SAME), (2, other), (3, other)])
    assert len(set(found)) == 1
    host = socket.gethostname()
    assert f"the packages is 'jax 1' on process 0 ({host}) and 'jax 2' on process 2 ({host}) (and 1 more)" in found[0]
    assert "the code" not in found[0]


def test_two_with_one_number_are_told(address):
    found = answers(address, [(0, SAME), (1, SAME), (1, SAME)])
    assert found[0] and set(found) == {found[0]}
    assert "two processes say that they are process 1 of 3" in found[0]


def test_another_count_is_told(address):
    answer = []

    def other():
        try:
            meet(Place(address, 3, 1, ""), SAME, 5)
        except ValueError as error:
            answer.append(str(error))

    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(ValueError, match="process 1 on .* counts 3 processes, and process 0 on .* counts 2") as error:
        meet(Place(address, 2, 0, ""), SAME, 5)
    thread.join()
    assert answer == [str(error.value)]


def test_whoever_else_knocks_disturbs_nothing(address):
    host, port = address.rsplit(":", 1)

    def knock():
        for words in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b"{}\n", b"", json.dumps({"process": "x"}).encode() + b"\n"):
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                try:
                    with socket.create_connection((host, int(port))) as line:
                        line.sendall(words)
                    break
                except OSError:
                    time.sleep(0.02)
        found.extend(answers(address, [(1, SAME)], count=2))

    found = []
    thread = threading.Thread(target=knock)
    thread.start()
    meet(Place(address, 2, 0, ""), SAME, 10)
    thread.join()
    assert found == [""]


def test_a_port_in_use_is_told(address):
    with socket.create_server(("", int(address.rsplit(":", 1)[1]))), pytest.raises(ValueError, match="another program"):
        meet(Place(address, 2, 0, "VIDLANG_COORDINATOR=…"), SAME, 5)
