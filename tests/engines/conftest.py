from collections.abc import Callable, Iterator
from pathlib import Path

import processes
import pytest
from launching import STAND_IN_HUB, Heard

from manyhands.engines.local import LocalRun
from manyhands.engines.options import LocalOptions

mark = processes.mark


@pytest.fixture
def launch(mark: str, tmp_path: Path) -> Iterator[Callable[..., Heard]]:
    """launch(source, workers=2, **options): a run of this source, not started yet."""
    assert mark
    started: list[LocalRun] = []

    def launch(source: str, workers: int = 1, **options: object) -> Heard:
        script = tmp_path / "script.py"
        script.write_text(source)
        settings = {"folder": tmp_path / "run", "hub_command": STAND_IN_HUB, **options}
        heard = Heard(None)  # type: ignore[arg-type]
        heard.run = LocalRun(
            LocalOptions(script, workers=workers, **settings),  # type: ignore[arg-type]
            lambda *line: heard.lines.append(line),
            heard.news.append,
        )
        started.append(heard.run)
        return heard

    yield launch
    for run in started:
        run.kill()
        if run.url:
            run.wait(20.0)
