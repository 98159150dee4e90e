"""Published files become plain values, and whatever is wrong with them is named with its place."""

import logging
import pickle

import numpy as np
import pyarrow as pa
import pytest

from vidlang.datasets._columns import id_lists, stream_csv
from vidlang.datasets._csv import parse_seconds, read_csv
from vidlang.datasets._files import field, open_text, parse_ids, read_json, read_lines, read_pickle


@pytest.fixture
def write(tmp_path):
    def to_file(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to_file


def test_json_and_lines(write):
    assert read_json(write("a.json", '{"a": [1, "é"]}')) == {"a": [1, "é"]}
    assert list(read_lines(write("a.jsonl", '{"a": 1}\n\n[2]\n'))) == [("line 1", {"a": 1}), ("line 3", [2])]
    with pytest.raises(ValueError, match=r"cut.json is not JSON: .*is the download complete"):
        read_json(write("cut.json", '{"a": [1,'))
    with pytest.raises(ValueError, match=r"b.jsonl, line 2: not JSON"):
        list(read_lines(write("b.jsonl", "1\n{\n")))


def test_json_may_begin_with_a_byte_order_mark(write):
    assert read_json(write("a.json", b"\xef\xbb\xbf[1]")) == [1]
    assert list(read_lines(write("a.jsonl", b"\xef\xbb\xbf1\n2\n"))) == [("line 1", 1), ("line 2", 2)]


def test_json_that_no_table_can_hold_is_named(write):
    deep = "[" * 100_000
    with pytest.raises(ValueError, match="a.json is not JSON"):
        read_json(write("a.json", deep))
    for line, message in (
        (deep.encode(), "not JSON"),
        (b'"\\uD800"', "half a letter"),
        (b'"caf\xe9"', "not UTF-8, found .*; save it as UTF-8"),
    ):
        with pytest.raises(ValueError, match=f"a.jsonl, line 2: .*{message}"):
            list(read_lines(write("a.jsonl", b"1\n" + line + b"\n")))
    assert list(read_lines(write("a.jsonl", '"\\ud83d\\ude00"'))) == [("line 1", "\U0001f600")]
    with pytest.raises(ValueError, match="here: 'end' must be a number below 1e308, found 1000"):
        field({"end": 10**400}, "end", float, "here")


def test_plain_pickles_are_read(write):
    rows = [("uid", 1.5, 2, ["a", None, True]), {"b": (b"c", {1, 2})}]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert read_pickle(write("a.pkl", pickle.dumps(rows[:1], protocol))) == rows[:1]
        numbers = [np.float32(0.5), np.float64(1.25), np.int64(-3), np.bool_(True)]
        read = read_pickle(write("b.pkl", pickle.dumps(numbers, protocol)))
        assert read == [0.5, 1.25, -3, True] and [type(value) for value in read] == [float, float, int, bool]
    assert read_pickle(write("c.pkl", pickle.dumps(rows))) == rows


class Runs:
    def __reduce__(self):
        return print, ("never",)


@pytest.mark.parametrize("value", [Runs(), print, np.zeros(2), np.datetime64("2020-01-01"), "x".encode])
def test_a_pickle_that_could_run_code_is_refused(write, value, capsys):
    path = write("a.pkl", pickle.dumps([value]))
    with pytest.raises(ValueError, match=r"a.pkl cannot be read as a pickle of plain values: it holds"):
        read_pickle(path)
    assert "never" not in capsys.readouterr().out


def test_a_damaged_pickle_is_named(write):
    with pytest.raises(ValueError, match="a.pkl cannot be read"):
        read_pickle(write("a.pkl", pickle.dumps(["text"] * 50)[:-20]))


def test_fields_have_their_kinds():
    record = {"name": "a", "time": 3, "flag": True, "items": []}
    assert field(record, "name", str, "here") == "a" and field(record, "time", float, "here") == 3
    assert field(record, "none", str, "here", None) is None
    for key, kind, message in [
        ("nam", str, r"here: there is no 'nam' \(did you mean 'name'\?\); found name, time"),
        ("name", float, "here: 'name' must be a number, found 'a'"),
        ("flag", int, "here: 'flag' must be a whole number, found True"),
        ("items", dict, r"'items' must be an object, found \[\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            field(record, key, kind, "here")
    with pytest.raises(ValueError, match="here: expected an object, found 7"):
        field(7, "name", str, "here")


def test_csv_columns_and_kinds(write):
    path = write("a.csv", '\ufefftext,time,count,other\n"a, ""b""\nc", 1.5 ,7,x\n,2e1,-8,y\n')
    table = read_csv(path, {"count": int, "text": str}, optional={"time": float, "absent": str})
    assert table.to_pydict() == {"count": [7, -8], "text": ['a, "b"\nc', ""], "time": [1.5, 20.0]}
    table = read_csv(write("b.csv", "1,a\n2,b\n"), {"n": int}, names=["n", "t"])
    assert table.to_pydict() == {"n": [1, 2]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,tim\na,1\n", r"a.csv has no column 'time' \(did you mean 'tim'\?\); its columns are text, tim"),
        ("text,time\na,1\nb,soon\n", "a.csv, row 3, column 'time': must be a number, found 'soon'"),
        (
            "text,time\na,1\nb\n",
            "a.csv cannot be read as a table with 2 columns: row 3 has 1 fields in place",
        ),
        ("text,time\n", "a.csv has no rows"),
        ("", "a.csv is empty; is the download complete"),
    ],
)
def test_a_wrong_csv_is_named(write, content, message):
    with pytest.raises(ValueError, match=message):
        read_csv(write("a.csv", content), {"text": str, "time": float})


def test_seconds_and_ids():
    found = parse_seconds(["01:02:03.5", "00:07.25", "9"], "a.csv", "start", np.arange(2, 9))
    assert found.tolist() == [3723.5, 7.25, 9.0]
    with pytest.raises(ValueError, match="a.csv, row 3, column 'start': must be a time such as .*found '1:2:3:4'"):
        parse_seconds(["1", "1:2:3:4"], "a.csv", "start", np.arange(2, 9))
    for wrong in ("-00:00:00.5", "00:-1:02", "00:00:61", "00:60:00", "1:60", "nan", "1e3", "", ":1", "1:"):
        with pytest.raises(ValueError, match=f"row 2, column 'start': must be a time such as .*found '{wrong}'"):
            parse_seconds([wrong], "a.csv", "start", np.arange(2, 9))
    assert parse_seconds(["90:59.5", "75", "100:59:59"], "a.csv", "start", np.arange(2, 9)).tolist() == [
        5459.5,
        75,
        363599,
    ]
    assert parse_ids("[192, 115]", "here") == [192, 115] and parse_ids(" [] ", "here") == parse_ids("", "here") == []
    with pytest.raises(ValueError, match="here: must be a list of whole numbers, found"):
        parse_ids("[a]", "here")


IDS = ["[192, 115, 12]", "[]", "[93]", "", " [ 1 ,2 ] ", "[7,]", "[0]"]


def test_id_lists_are_those_of_one_text_at_a_time():
    expected = [[192, 115, 12], [], [93], [], [1, 2], [7], [0]]
    assert id_lists(_array(IDS)).to_pylist() == expected
    assert id_lists(_array(IDS).slice(2, 4)).to_pylist() == expected[2:6]
    wrong = ["[a]", "[1", "1]", "[1 2]", "[1.5]", "[-1]", "[99999999999]", "[1]]", "nan", "[,1]", "3"]
    for text in wrong:
        assert id_lists(_array(["[4, 5]", text, "[6]"])).to_pylist() == [[4, 5], None, [6]]


def _array(texts):
    return pa.array(texts, pa.string())


def streamed(path, monkeypatch, block=64):
    monkeypatch.setattr("vidlang.datasets._columns.BLOCK", block)
    parts = list(stream_csv(path, {"text": str, "time": float, "n": int, "ids": list}, delimiter="\t"))
    rows = [row for table, _ in parts for row in table.to_pylist()]
    return rows, [int(number) for _, number_R in parts for number in number_R], len(parts)


def test_streamed_rows_are_all_rows_with_their_numbers(write, monkeypatch):
    lines = [f"text {i}\t{i}.5\t{i}\t[{i}, {i + 1}]" for i in range(40)]
    path = write("a.tsv", "\n".join(["text\ttime\tn\tids", *lines]))
    rows, numbers, parts = streamed(path, monkeypatch)
    assert rows == [{"text": f"text {i}", "time": i + 0.5, "n": i, "ids": [i, i + 1]} for i in range(40)]
    assert numbers == list(range(2, 42)) and parts > 5


def test_unreadable_rows_are_left_out_and_counted(write, monkeypatch, caplog):
    lines = [f"text {i}\t{i}.5\t{i}\t[{i}]" for i in range(40)]
    bad = {
        3: "too few\t1",
        17: "too\t1\t2\t[3]\tmany",
        18: "no time\tsoon\t1\t[z]",
        30: "x\tnan\t1\t[2]",
        39: "y\t1\t2\t[z]",
    }
    lines = [bad.get(i, line) for i, line in enumerate(lines)]
    path = write("a.tsv", "\n".join(["text\ttime\tn\tids", *lines]))
    with caplog.at_level(logging.WARNING, logger="absl"):
        rows, numbers, _ = streamed(path, monkeypatch)
    assert [row["n"] for row in rows] == [i for i in range(40) if i not in bad]
    # The header is row 1, so line i is row i + 2.
    assert numbers == [i + 2 for i in range(40) if i not in bad]
    assert "a.tsv: left out 5 rows of 40: row 5 has 2 fields in place of 4: 'too few" in caplog.text


def test_a_stream_of_nothing_is_an_error(write, monkeypatch):
    with pytest.raises(
        ValueError, match=r"a.tsv: no row can be read, row 2, column 'time': must be a number, found 'x'"
    ):
        streamed(write("a.tsv", "text\ttime\tn\tids\na\tx\t1\t[1]\n"), monkeypatch)
    with pytest.raises(ValueError, match=r"a.tsv has no column 'ids'"):
        streamed(write("a.tsv", "text\ttime\tn\nb\t1\t2\n"), monkeypatch)


def test_text_without_the_mark_of_its_encoding(write):
    assert open_text(write("a.txt", b"\xef\xbb\xbfname\n")).read() == "name\n"
