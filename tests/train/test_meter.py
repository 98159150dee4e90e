"""The wait for data is counted from the moment when the devices had nothing to do."""

import time
from concurrent.futures import Future

import pytest

from vidlang.core.metrics import read_history
from vidlang.train import meter as meter_module
from vidlang.train.meter import Meter, Running


@pytest.fixture
def clock(monkeypatch):
    """A time that only the test moves on."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(meter_module, "time", clock)
    return clock


class Written:
    """Keeps what a writer is given."""

    def __init__(self):
        self.records = []

    def write(self, step, scalars):
        self.records.append(dict(scalars))

    def progress(self, step, scalars):
        pass


def run_step(meter, clock, step, *, runs, draws):
    """One pass of the loop: the step is dispatched, takes `runs` seconds, and the next batch is drawn meanwhile."""
    done = Future()
    done.set_result(clock.now + runs)
    running = Running(step, {"loss": 1.0, "grad_norm": 1.0}, done)
    with meter.waiting(behind=running):
        clock.now += draws
    clock.now = max(clock.now, done.result())  # what the loop would wait for
    meter.flush(None)
    meter.pending = running


@pytest.mark.parametrize(("runs", "draws", "share"), [(1.0, 0.5, 0.0), (1.0, 4.0, 0.75), (1.0, 1.0, 0.0)], ids=str)
def test_only_the_time_when_nothing_runs_is_waited(stage, clock, runs, draws, share):
    written = Written()
    meter = Meter(written, stage(batch_size=16))
    for step in range(30):
        run_step(meter, clock, step, runs=runs, draws=draws)
    last = written.records[-1]
    assert last["data_wait"] == pytest.approx(share)
    assert last["clips_per_second"] == pytest.approx(16 / max(runs, draws))


def test_the_first_batch_of_a_run_is_waited_for_whole(stage, clock):
    written = Written()
    meter = Meter(written, stage(batch_size=16))
    with meter.waiting():
        clock.now += 3.0
    run_step(meter, clock, 0, runs=1.0, draws=0.0)
    meter.flush(None)
    assert written.records[0]["data_wait"] == pytest.approx(0.75)


def test_evaluations_are_no_part_of_a_step(stage, clock):
    written = Written()
    meter = Meter(written, stage(batch_size=16))
    run_step(meter, clock, 0, runs=1.0, draws=0.0)
    meter.flush(None)
    clock.now += 50.0
    meter.restart_clock()
    run_step(meter, clock, 1, runs=1.0, draws=0.0)
    meter.flush(None)
    assert written.records[1]["clips_per_second"] == pytest.approx(16)


def test_a_run_that_is_starved_says_so(recipe, tmp_path, monkeypatch):
    from vidlang.train import sources, stages

    real = sources.train_stream

    drawn = []

    class Slow:
        restarts = 0

        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            return self

        def __exit__(self, *reason):
            self.stream.close()

        def __next__(self):
            time.sleep(0.2)
            drawn.append(len(drawn))
            return next(self.stream)

    monkeypatch.setattr(sources, "train_stream", lambda *args, **options: Slow(real(*args, **options)))
    stages.train(recipe(evals=(), checkpoint={"every": "4 steps"}), tmp_path)
    waits = [record["data_wait"] for record in read_history(tmp_path / "0_short/metrics.jsonl")]
    assert waits[-1] > 0.5
    assert len(drawn) == 4, "nothing is drawn that no step will take"
