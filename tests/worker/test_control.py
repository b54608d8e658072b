"""The connection to the hub."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from stand_in_hub import PATIENCE, StandInHub

from manyhands.core.messages import (
    STRANGER,
    Beat,
    Entered,
    Hello,
    Refuse,
    Saved,
    Suspected,
    ToHub,
    ToWorker,
    Version,
    Welcome,
)
from manyhands.errors import HubUnreachable
from manyhands.worker.control import Control

CHILD = """
import os, signal, sys, threading, time
from manyhands.core.messages import Beat, Hello
from manyhands.worker.control import Control

hello = Hello("run", "child", "child", os.getpid(), "127.0.0.1", 1, "0")
lock = threading.Lock()
control = Control(sys.argv[1], "a token", lambda local: hello, Beat, lambda message: None, print, lock)
control.start(time.monotonic() + 10.0)
sys.stdin.readline()
child = os.fork()
if child == 0:
    signal.pause()
print(child, flush=True)
signal.pause()
"""


class Teller:
    """A worker that has counted to `count` in all, and tells of each number as it comes to it."""

    def __init__(self, hub: StandInHub) -> None:
        self.lock, self.count = threading.Lock(), 0
        self.failures: list[Exception] = []
        self.then = lambda _: None
        self.between: threading.Thread | None = None
        self.control = Control(
            hub.url, "a token", self.hello, Beat, self.heard, self.failures.append, self.lock
        )

    def heard(self, message: ToWorker) -> None:
        self.then(message)

    def hello(self, _: str) -> Hello:
        said = Hello("run", "me", "me", self.count, "127.0.0.1", 1, "0")
        self.between = threading.Thread(target=self.go_on)
        self.between.start()
        return said

    def go_on(self) -> None:
        """The next number comes just when a Hello is being made."""
        with self.lock:
            self.count += 1
            self.control.send(Entered(self.count, Version(0, 0)))


def numbers(heard: list[ToHub]) -> list[int]:
    """All that the hub was told, as it stands in the last Hello or came after it."""
    last = max(i for i, message in enumerate(heard) if isinstance(message, Hello))
    hello = heard[last]
    assert isinstance(hello, Hello)
    after = [message.view for message in heard[last:] if isinstance(message, Entered)]
    return [*range(1, hello.pid + 1), *after]


def test_what_is_sent_while_a_hello_is_made_is_either_in_it_or_comes_after_it(hub: StandInHub) -> None:
    teller = Teller(hub)
    teller.control.start(time.monotonic() + PATIENCE)
    try:
        hub.wait_for(Entered)
        hub.drop("me")
        hub.wait_for(Hello, number=2)
        hub.wait_for(Entered, number=2)
        assert numbers([message for _, message in hub.heard]) == [1, 2]
    finally:
        teller.control.close()


def test_what_no_hello_says_is_told_once_there_is_a_connection_again_but_for_old_suspicions(
    hub: StandInHub,
) -> None:
    teller, broken, told = Teller(hub), threading.Event(), threading.Event()
    hello, calls = teller.hello, list[str]()

    def hello_later(local: str) -> Hello:
        calls.append(local)
        if len(calls) > 1:
            broken.set()
            assert told.wait(PATIENCE)
        return hello(local)

    teller.control._hello = hello_later
    teller.control.start(time.monotonic() + PATIENCE)
    try:
        hub.wait_for(Entered)
        hub.drop("me")
        assert broken.wait(PATIENCE)
        teller.control.send(Entered(99, Version(0, 0)))
        teller.control.send(Suspected("b", "its line is cut"))
        teller.control.send(Saved(7))
        told.set()
        assert hub.wait_for(Saved).serial == 7
        heard = [message for _, message in hub.heard]
        assert 99 not in numbers(heard)
        assert not any(isinstance(message, Suspected) for message in heard)
    finally:
        teller.control.close()


def test_a_hub_of_another_run_on_the_same_port_ends_nobody_who_has_been_welcomed(hub: StandInHub) -> None:
    teller, back = Teller(hub), threading.Event()
    teller.then = lambda message: back.set() if isinstance(message, Welcome) and message.epoch == 7 else None
    teller.control.start(time.monotonic() + PATIENCE)
    try:
        hub.wait_for(Entered)
        hub.refusal = Refuse(STRANGER, "it knows no such token")
        hub.drop("me")
        hub.wait_for(Hello, number=3)
        hub.refusal, hub.epoch = None, 7
        assert back.wait(PATIENCE)
        assert not teller.failures
    finally:
        teller.control.close()


def test_who_was_never_welcomed_and_has_another_token_is_told_so(hub: StandInHub) -> None:
    teller, told = Teller(hub), threading.Event()
    teller.then = lambda message: told.set() if isinstance(message, Refuse) else None
    hub.refusal = Refuse(STRANGER, "it knows no such token")
    teller.control.start(time.monotonic() + PATIENCE)
    try:
        assert told.wait(PATIENCE)
    finally:
        teller.control.close()


def test_an_error_where_a_message_is_handled_is_told_and_the_connection_stays_for_a_goodbye(
    hub: StandInHub,
) -> None:
    teller = Teller(hub)

    def fails(message: ToWorker) -> None:
        if isinstance(message, Welcome):
            raise KeyError("it")

    teller.then = fails
    teller.control.start(time.monotonic() + PATIENCE)
    try:
        hub.wait_for(Beat, number=2)
        assert [repr(error) for error in teller.failures] == ["KeyError('it')"]
    finally:
        teller.control.close()


def late_to_say_hello(hub: StandInHub) -> Teller:
    """One whose Hello is made when the hub has hung up already."""
    teller = Teller(hub)
    hello = teller.hello

    def hello_later(local: str) -> Hello:
        with hub.changed:
            assert hub.changed.wait_for(lambda: hub.hung_up > teller.count, PATIENCE)
        return hello(local)

    hub.hangs_up = True
    teller.control._hello = hello_later
    return teller


def test_a_refusal_that_comes_before_hello_is_heard_and_the_hub_not_dialled_again(hub: StandInHub) -> None:
    teller, heard = late_to_say_hello(hub), list[ToWorker]()
    teller.then = heard.append
    hub.refusal = Refuse("ConfigurationError", "the hub does not know this token")
    teller.control.start(time.monotonic() + PATIENCE)
    teller.control.close()
    assert heard == [hub.refusal]
    assert hub.hung_up == 1


def test_who_gave_up_dialling_a_hub_that_hangs_up_can_be_closed(hub: StandInHub) -> None:
    teller = late_to_say_hello(hub)
    with pytest.raises(HubUnreachable):
        teller.control.start(time.monotonic())
    teller.control.close()


def test_the_hub_hears_at_once_of_a_killed_worker_even_if_a_process_forked_from_it_lives_on(
    hub: StandInHub,
) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", CHILD, hub.url], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    orphan = 0
    try:
        hub.wait_for(Beat, "child")
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write("fork\n")
        worker.stdin.flush()
        orphan = int(worker.stdout.readline())
        worker.send_signal(signal.SIGKILL)
        hub.wait_for_end("child")
        assert psutil.pid_exists(orphan)
    finally:
        if orphan:
            os.kill(orphan, signal.SIGKILL)
        worker.kill()
        worker.wait(PATIENCE)
        for stream in (worker.stdin, worker.stdout):
            assert stream is not None
            stream.close()
