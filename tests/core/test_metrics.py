import io

import pytest

from vidlang.core import metrics
from vidlang.core.tensorboard import masked_crc


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_jsonl_continues_without_duplicate_steps(tmp_path):
    first = metrics.Writer(tmp_path, total_steps=10, stream=io.StringIO())
    for step in range(6):
        first.write(step, {"loss": step})
    first.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')  # a kill in the middle of a line
    second = metrics.Writer(tmp_path, total_steps=10, first_step=4, stream=io.StringIO())
    second.write(4, {"loss": 40})
    second.close()
    history = metrics.read_history(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in history] == [0, 1, 2, 3, 4]
    assert history[-1]["loss"] == 40


def test_damage_inside_a_history_is_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\nnonsense\n{"step": 1}\n')
    with pytest.raises(ValueError, match="line 2"):
        metrics.read_history(tmp_path / "metrics.jsonl")


def test_events_are_what_tensorboard_reads(tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = metrics.Writer(tmp_path, total_steps=300, stream=io.StringIO())
    for step in (0, 1, 299):
        writer.write(step, {"loss": -step / 2, "val/t2v_r1": 0.25})
    writer.close()
    events = loader.EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 0.0), (1, -0.5), (299, -149.5)]
    assert [e.value for e in events.Scalars("val/t2v_r1")] == [0.25] * 3


def test_tensorboard_forgets_what_a_resumed_run_writes_again(tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first, value in ((0, 1.0), (2, 2.0)):
        writer = metrics.Writer(tmp_path, total_steps=4, first_step=first, stream=io.StringIO())
        for step in range(first, 4):
            writer.write(step, {"loss": value})
        writer.close()
    found = [(e.step, e.value) for e in loader.EventAccumulator(str(tmp_path)).Reload().Scalars("loss")]
    assert found == [(0, 1.0), (1, 1.0), (2, 2.0), (3, 2.0)]


def test_crc_is_castagnoli():
    crc = 0xE3069283  # the check value of CRC-32C for "123456789"
    assert masked_crc(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_a_terminal_rewrites_one_line_and_a_log_gets_plain_ones():
    terminal, log = Terminal(), io.StringIO()
    for stream in (terminal, log):
        writer = metrics.Writer(None, total_steps=4, log_every=2, stream=stream)
        for step in (1, 2, 3, 4):
            writer.progress(step, {"loss": 1 / step})
        writer.close()
    assert terminal.getvalue().count("\r") == 4 and terminal.getvalue().count("\n") == 1
    assert [line.split()[1] for line in log.getvalue().splitlines()] == ["2/4", "4/4"]
    assert "ETA 0s" in log.getvalue()


def test_numbers_and_times_read_well():
    assert metrics.format_number(0.123456) == "0.1235"
    assert metrics.format_number(30.0) == "30"
    assert [metrics.format_number(float(word)) for word in ("nan", "inf", "-inf")] == ["nan", "inf", "-inf"]
    assert [metrics.format_seconds(s) for s in (45, 200, 3720, float("nan"))] == ["45s", "3m20s", "1h02m", "?"]
