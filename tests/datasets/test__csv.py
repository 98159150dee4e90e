"""Published csv files: what cannot be read is named with the row or line that an editor shows."""

import numpy as np
import pyarrow as pa
import pytest

from vidlang.datasets._columns import stream_csv
from vidlang.datasets._csv import as_type, csv_rows, numbered_csv, read_csv


@pytest.fixture
def write(tmp_path):
    def to_file(content):
        path = tmp_path / "a.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to_file


def test_rows_are_those_of_the_file(write):
    path = write('n,t\n\n1,"a\nb"\n\n\n2,\n,c\n')
    table, number_R = numbered_csv(path, {"t": str})
    # The last but one has a value in another column.
    assert table.to_pydict() == {"t": ["a\nb", "", "c"]} and number_R.tolist() == [3, 6, 7]
    assert list(csv_rows(path, {"n": str})) == [(3, {"n": "1"}), (6, {"n": "2"}), (7, {"n": ""})]
    assert numbered_csv(write("\n5,a\n\n6,b"), {"n": int}, names=["n", "t"])[1].tolist() == [2, 4]


@pytest.mark.parametrize("block", [16, 1 << 20])
def test_streamed_rows_are_those_of_the_file(write, monkeypatch, block):
    monkeypatch.setattr("vidlang.datasets._columns.BLOCK", block)
    path = write("n,t\n\n1,a\n\n\n2,b\n3\n\n4,d\n")
    parts = list(stream_csv(path, {"n": int, "t": str}))
    assert [value for table, _ in parts for value in table.column("n").to_pylist()] == [1, 2, 4]
    assert [int(number) for _, number_R in parts for number in number_R] == [3, 6, 9]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("n,t\n\n1,a\n2,b,c\n", "a.csv cannot .*: row 4 has 3 fields in place of 2: '2,b,c'; a text that holds ','"),
        (b"n,t\n1,a\n2,caf\xe9\n", "a.csv, line 3: not UTF-8, found .*caf.*; save it as UTF-8"),
        ("n,t\n1,a\n99999999999999999999,b\n", "row 3, column 'n': must be a whole number of 64 bits, found '9999"),
        ("n,t\n1,a\n1_000,b\n", "row 3, column 'n': must be a whole number, found '1_000'"),
        ("n;t\n1;a\n", "a.csv is separated by ';', expected ','; its first line is 'n;t"),
        ("\nn,t\n1,a\n", "a.csv has a blank first line"),
        ("\n", "a.csv is empty; is the download complete"),
        ("n,t,n\n1,a,2\n", "a.csv has 2 columns 'n'"),
        ("n,t\n\n\n", "a.csv has no rows"),
    ],
)
def test_a_wrong_file_is_named(write, content, message):
    with pytest.raises(ValueError, match=message):
        read_csv(write(content), {"n": int, "t": str})


def test_a_column_that_is_not_asked_for_may_be_there_twice(write):
    assert read_csv(write("n,x,x\n1,2,3\n\n"), {"n": int}).to_pydict() == {"n": [1]}


def test_a_stream_that_is_no_utf8_is_named(write):
    with pytest.raises(ValueError, match="a.csv, line 3: not UTF-8"):
        list(stream_csv(write(b"n,t\n1,a\n2,\xff\n"), {"t": str}))


def test_a_value_that_does_not_fit_is_named_with_its_row():
    column = pa.chunked_array([[1, 2], [2**31]])
    with pytest.raises(
        ValueError, match="a.csv, row 9, column 'n': must be a whole number of 32 bits, found 2147483648"
    ):
        as_type(column, pa.int32(), "a.csv", "n", np.array([2, 5, 9]))
    assert as_type(column[:2], pa.int32(), "a.csv", "n", np.array([2, 5])).to_pylist() == [1, 2]
