"""Keeps the processes of one run going, and decides what becomes of a worker that has ended."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from manyhands.engines.failures import OF_THE_RUN, Failures
from manyhands.engines.folder import (
    committed_since,
    end_is_known,
    failures_at_data,
    joined_since,
    left_since,
    note_failure,
    out_since_the_end,
    saw_the_end,
)
from manyhands.engines.hub_process import HubProcess
from manyhands.engines.loop import Loop
from manyhands.engines.options import LocalOptions
from manyhands.engines.output import Failure
from manyhands.engines.process import Child, Guard, describe_exit
from manyhands.engines.worker_process import WorkerProcess

SayLine = Callable[[str, str, str], None]
Say = Callable[[str], None]

_FIRST_DELAY, _LONGEST_DELAY = 0.5, 8.0
_FAREWELL, _LOOK_AGAIN = 1.0, 0.02
_RETURN, _LOOK_FOR_WHO_IS_OUT = 300.0, 5.0  # for who has lost its place, after all others have ended
_SETTLED = 30.0  # a worker of a hub elsewhere that lived so long did not fail at its start


@dataclass
class _Place:
    """One worker's place in the run: "waiting" to start, "running", "finished", or "gone" for good.

    Between the last two: "failed", as long as the others may fail in the same way. `failed_at` is when, in
    wall time, and `how` in what way it failed last; 0.0 when it has made that good.
    """

    name: str
    state: str = "waiting"
    process: WorkerProcess | None = None
    restarts: int = 0
    delay: float = _FIRST_DELAY
    failed_at: float = 0.0
    how: str = ""


class Supervisor:
    """Lives in the thread that calls `run`; other threads reach it through `loop.call` alone.

    `line(worker, stream, text)` gets what workers print (worker ``""``: the traceback they share), `say`
    one sentence for each thing that happens to a process. `code` and `why` tell how the run ended.
    """

    def __init__(
        self, options: LocalOptions, folder: Path | None, token: str, guard: Guard, line: SayLine, say: Say
    ) -> None:
        self.loop = Loop()
        self.code, self.why = 0, ""
        self.url = options.hub or ""
        self.hub: HubProcess | None = None
        self.places = {name: _Place(name) for name in options.worker_names()}
        self._options, self._folder, self._token = options, folder, token
        self._guard, self._line, self._say = guard, line, say
        self._failures = Failures()
        self._stopping = self._killing = self._ended = self._looking = False

    def run(self, ready: Callable[[], None]) -> None:
        """Returns when no process is left, whatever happens. `ready` is called when all workers run."""

        def start(url: str) -> None:
            self.url = url
            for place in self.places.values():
                self._start(place)
            ready()

        try:
            if self._folder is None:
                start(self.url)
            else:
                self.hub = HubProcess(
                    self.loop,
                    self._options,
                    self._folder,
                    self._token,
                    self._guard,
                    say=self._say,
                    ready=start,
                    lost=lambda why: self.stop(1, why),
                    gone=self._hub_gone,
                )
            self.loop.run(lambda: self._ended)
        finally:
            for child in self._children():
                child.reap()
            self.loop.close()

    def stop(self, code: int, why: str) -> None:
        """Has everything leave in order: the workers, then the hub. The first reason counts."""
        if self._stopping:
            return
        self._stopping = True
        self.code, self.why = code, why
        for place in self.places.values():
            self._show_failure(place)
            if place.process is not None:
                place.process.child.signal(signal.SIGTERM)
        self.loop.later(self._options.grace, self._out_of_patience)
        self._go_on_stopping()

    def kill(self, code: int, why: str) -> None:
        """Ends everything at once: the workers, and the hub as soon as they are gone."""
        self._killing = True
        self.stop(code, why)
        for name in self.places:
            if (child := self.worker_child(name)) is not None:
                child.kill_session()
        self._go_on_stopping()

    def add(self, name: str) -> None:
        """One more worker, under a name that no worker has had."""
        if name not in self.places and not self._stopping:
            self.places[name] = _Place(name)
            self._start(self.places[name])

    def worker_child(self, name: str) -> Child | None:
        place = self.places.get(name)
        process = place.process if place is not None else None
        return process.child if process is not None else None

    def hub_child(self) -> Child | None:
        return self.hub.child if self.hub is not None else None

    def _out_of_patience(self) -> None:
        for name in self.places:
            child = self.worker_child(name)
            if child is not None:
                self._say(f"killing worker {name}: still there {self._options.grace:g} s after SIGTERM")
                child.kill_session()

    def _children(self) -> list[Child]:
        found = [*map(self.worker_child, self.places), self.hub_child()]
        return [child for child in found if child is not None]

    def _go_on_stopping(self) -> None:
        if any(place.process is not None for place in self.places.values()):
            return
        if self.hub is None:
            self._ended = True
        else:
            self.hub.stop(self._killing)

    def _hub_gone(self) -> None:
        self._ended = True

    # --- workers ---------------------------------------------------------------------------------

    def _start(self, place: _Place) -> None:
        if self._stopping:
            return
        if self._saw_the_end(place):
            place.state = "gone"
            self._look_who_is_left()
            return
        self._show_failure(place)
        place.state = "running"
        place.process = WorkerProcess(
            self.loop,
            [sys.executable, "-u", str(self._options.script), *self._options.args],
            self._worker_env(place.name),
            self._guard,
            lambda stream, text: self._line(place.name, stream, text),
            lambda code, failure: self._worker_ended(place, code, failure),
        )

    def _worker_env(self, name: str) -> dict[str, str]:
        options = self._options
        threads = max(1, len(os.sched_getaffinity(0)) // options.workers)
        env = {"OMP_NUM_THREADS": str(threads), **os.environ, **options.env}
        env.update(
            MANYHANDS_HUB=self.url,
            MANYHANDS_TOKEN=self._token,
            MANYHANDS_RUN=options.run if self._folder is None else self._folder.name,
            MANYHANDS_NAME=name,
            MANYHANDS_PATIENCE=str(options.patience),
        )
        return env

    def _worker_ended(self, place: _Place, code: int, failure: Failure | None) -> None:
        assert place.process is not None
        since, place.process = place.process.since, None
        self._failures.ended(place.name, failure, since)
        came_late = (
            failure is not None and failure.kind == "RunOver" and "finished" in self._states() and code != 0
        )
        if code == 0 or came_late:
            place.state = "finished"
            self._failures.forgive(place.name)
            if code == 0 and self._joined_since(place.name, since):
                place.failed_at = 0.0
            if came_late:
                self._say(f"worker {place.name} came back after the run was over")
        elif self._stopping:
            place.state = "gone"
        else:
            if failure is None or failure.kind not in OF_THE_RUN:
                place.failed_at, place.how = time.time(), self._how(place, code)
                if failure is not None and self._folder is not None:
                    note_failure(self._folder, place.name, failure.error)
            self._await_goodbye(place, code, since, time.monotonic() + _FAREWELL)
        if self._stopping:
            self._show_failure(place)
            self._go_on_stopping()
        else:
            self._look_who_is_left()

    def _look_who_is_left(self) -> None:
        if not self._in_play():
            for failed in self.places.values():
                self._give_up_on_worker(failed)
            self._all_ended()
        elif self._folder is not None and not self._looking:
            self._looking = True
            self._look_who_is_out(self._folder, "", 0.0)

    def _look_who_is_out(self, folder: Path, before: str, until: float) -> None:
        """Whoever has lost its place may hang, and is not waited for for ever when all others have ended.

        `before` is who was waited for at the last look, and `until` for how long.
        """
        if self._stopping or not self._in_play():
            return
        left = [place for place in self.places.values() if place.state in ("waiting", "running")]
        out = all(place.state == "running" and out_since_the_end(folder, place.name) for place in left)
        names = f"worker {', '.join(place.name for place in left)}" if out else ""
        if names and names != before:
            seconds = _RETURN * self._options.patience
            until = time.monotonic() + seconds
            self._say(f"all others have ended; {names} has lost its place: waiting {seconds:.0f} s for it")
        elif names and time.monotonic() > until:
            undone = self._left_undone()
            self.stop(1 if undone else 0, undone or f"finished without {names}, which did not come back")
        self.loop.later(_LOOK_FOR_WHO_IS_OUT, lambda: self._look_who_is_out(folder, names, until))

    def _await_goodbye(self, place: _Place, code: int, since: float, deadline: float) -> None:
        """What a script raised may be for its data: the hub knows, as soon as it has heard of it."""
        folder, failure = self._folder, self._failures.of(place.name)
        if (
            folder is None
            or failure is None
            or not joined_since(folder, place.name, since)
            or left_since(folder, place.name, since)
            or time.monotonic() > deadline
        ):
            self._worker_failed(place, code, since)
        else:
            self.loop.later(_LOOK_AGAIN, lambda: self._goodbye_awaited(place, code, since, deadline))

    def _goodbye_awaited(self, place: _Place, code: int, since: float, deadline: float) -> None:
        if self._stopping:
            place.state = "gone"
            self._show_failure(place)
        else:
            self._await_goodbye(place, code, since, deadline)
            self._look_who_is_left()

    def _worker_failed(self, place: _Place, code: int, since: float) -> None:
        if self._saw_the_end(place):
            place.state = "gone"  # whoever comes now is told that there is nothing left to join
        elif self._fails_everywhere() and not self._fails_at_data(place, since):
            self._give_up_on_script(place)
        elif self._failures.beyond_restart(place.name):
            place.state = "failed"  # the others may fail in the same way when they have come as far
            age = 0.0 if self._committed_since(since, None) else time.time() - since
            self.loop.later(max(_FIRST_DELAY, age), lambda: self._give_up_on_worker(place))
        elif place.restarts - self._excused(place) >= self._options.max_restarts:
            place.state = "gone"
            others = "the others go on" if self._in_play() else "it stays away"
            restarts = f"{place.restarts} restart{'' if place.restarts == 1 else 's'}"
            self._say(f"worker {place.name} {self._how(place, code)} after {restarts}: {others}")
        else:
            self._restart_later(place, code, since)

    def _how(self, place: _Place, code: int) -> str:
        failure, first = self._failures.of(place.name), self._failures.first_with(place.name)
        if failure is None:
            return describe_exit(code)
        return f"failed with {failure.error}" + (f", as worker {first} did" if first != place.name else "")

    def _states(self) -> set[str]:
        return {place.state for place in self.places.values()}

    def _fails_at_data(self, place: _Place, since: float) -> bool:
        """It may be the batch, and not the script. Of the first batch of all a second start tells."""
        if self._folder is None:
            return False
        judged = failures_at_data(self._folder, place.name, since)
        return judged != [] and (
            judged != ["batch-failed"] or (place.restarts == 0 and len(self.places) == 1)
        )

    def _excused(self, place: _Place) -> int:
        """Restarts after failures at data where somebody had failed before: the hub puts an end to these."""
        return failures_at_data(self._folder, place.name).count("bad-data") if self._folder else 0

    def _in_play(self) -> bool:
        return bool(self._states() & {"waiting", "running"})

    def _restart_later(self, place: _Place, code: int, since: float) -> None:
        if self._committed_since(since, place.name):
            place.delay = _FIRST_DELAY
        delay, place.delay = place.delay, min(2 * place.delay, _LONGEST_DELAY)
        place.restarts += 1
        place.state = "waiting"
        count = f" {place.restarts - self._excused(place)} of {self._options.max_restarts}"
        if self._folder is not None and "bad-data" in failures_at_data(self._folder, place.name, since):
            count = " (where one had failed before)"
        self._say(f"worker {place.name} {self._how(place, code)}; restart{count} in {delay:g} s")
        self.loop.later(delay, lambda: self._start(place))

    def _all_ended(self) -> None:
        gone = [place.name for place in self.places.values() if place.state == "gone"]
        if "finished" not in self._states() and not self._left_undone():
            for_good = all(self._failures.beyond_restart(name) for name in gone)
            after = "" if for_good else f" after {self._options.max_restarts} restarts"
            self.stop(1, f"no worker is left: all failed{after}")
        else:
            why = f"finished without worker {', '.join(gone)}" if gone else "finished"
            self._await_end_in_journal(why, time.monotonic() + _FAREWELL)

    def _await_end_in_journal(self, why: str, deadline: float) -> None:
        """The workers' last words may still be on their way into the hub; nobody says more than that."""
        if self._folder is None or time.monotonic() > deadline or end_is_known(self._folder):
            undone = self._left_undone()
            self.stop(1 if undone else 0, undone or why)
        else:
            self.loop.later(_LOOK_AGAIN, lambda: self._await_end_in_journal(why, deadline))

    def _left_undone(self) -> str:
        """Who failed after the training had ended, and what that means; "" where nobody did."""
        failed = [f"worker {p.name} {p.how}" for p in self.places.values() if self._saw_the_end(p)]
        if not failed:
            return ""
        scripts = "its script does" if len(failed) == 1 else "their scripts do"
        return (
            f"{', '.join(failed)} after the training had ended: what {scripts} then, such as saving the "
            "model, was not done to its end"
        )

    def _saw_the_end(self, place: _Place) -> bool:
        """Its last failure came when the training had ended for it, so that a restart cannot make it good."""
        failed, folder = place.failed_at, self._folder
        return failed > 0.0 and folder is not None and saw_the_end(folder, place.name, failed)

    def _joined_since(self, name: str, moment: float) -> bool:
        return self._folder is None or joined_since(self._folder, name, moment)

    def _give_up_on_worker(self, place: _Place) -> None:
        """Another start would end in the same way."""
        if self._stopping or place.state != "failed":
            return
        failure = self._failures.of(place.name)
        assert failure is not None
        place.state = "gone"
        others = "the others go on" if self._in_play() else "it stays away"
        self._show_failure(place)
        self._say(f"worker {place.name} failed for good, {others}: {failure.error}")

    # --- failures --------------------------------------------------------------------------------

    def _fails_everywhere(self) -> bool:
        """The same traceback ended every worker, and no version was committed since they started."""
        since = self._failures.everywhere_since(self.places)
        return since is not None and not self._committed_since(since, None)

    def _committed_since(self, moment: float, name: str | None) -> bool:
        if self._folder is None:
            return time.time() - moment > _SETTLED
        return committed_since(self._folder, moment, name)

    def _give_up_on_script(self, last: _Place) -> None:
        failure = self._failures.of(last.name)
        assert failure is not None
        lost = failure.kind in OF_THE_RUN
        for text in () if lost else self._failures.to_show(last.name):
            self._line("", "stderr", text)
        for place in self.places.values():
            self._failures.forgive(place.name)
            place.state = "gone"
        if lost:
            self.stop(1, failure.error.partition(": ")[2])
            return
        everywhere = "" if len(self.places) == 1 else " on every worker"
        how = "" if failure.text else f": {failure.error}"  # the text has just been shown
        self.stop(1, f"{self._options.script} failed{everywhere} before anything was learned{how}")

    def _show_failure(self, place: _Place) -> None:
        for text in self._failures.to_show(place.name):
            self._line(place.name, "stderr", text)
