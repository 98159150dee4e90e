"""VideoCC as published: links, microseconds and captions, without a header."""

import pytest

from vidlang.datasets import videocc

ROWS = """\
https://www.youtube.com/watch?v=-_aBcDeFgHi,120000000,130500000,"a man, ""smiling"", in a café"
https://youtu.be/12345678901?t=3,0,10010000, dogs
https://www.youtube.com/watch?t=1&v=-_aBcDeFgHi,1,10000001,#
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "video_cc_public.csv"
    path.write_text(ROWS, encoding="utf-8")
    return path


@pytest.fixture
def store(make_store):
    return make_store({"-_aBcDeFgHi": 140.0, "12345678901": 11.0})


def row(video, start, end, text):
    return {"video": video, "start": start, "end": end, "texts": [text], "id": video}


def test_every_value_is_read(path, store, rows_of):
    assert rows_of(videocc.load("train", root=str(path.parent), store=store)) == [
        row("-_aBcDeFgHi", 120.0, 130.5, 'a man, "smiling", in a café'),
        row("12345678901", 0.0, 10.01, " dogs"),
        row("-_aBcDeFgHi", 1e-6, 10.000001, "#"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("https://x/watch?w=12345678901,0,1,a", "row 4, column 'url': expected a link to a YouTube video, found 'http"),
        ("https://youtu.be/12345678901,0.5,1,a", "row 4, column 'start': must be a whole number, found '0.5'"),
        ("https://youtu.be/12345678902,0,1,a", "row 4: video '12345678902' is not in the chunk store"),
        (
            "https://youtu.be/12345678901,11000000,12000000,a",
            "row 4: the clip 11 to 12 s .* starts after the video's e",
        ),
        ("https://youtu.be/12345678901,7,7,a", "row 4: the clip 7e-06 to 7e-06 s of video '12345678901' is none"),
    ],
)
def test_a_wrong_row_is_named(path, store, line, message):
    path.write_text(f"{ROWS}{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"video_cc_public.csv, {message}"):
        videocc.load("train", root=str(path.parent), store=store)


def test_unknown_videos_can_be_left_out(path, make_store):
    store = make_store({"12345678901": 11.0})
    table = videocc.load("train", root=str(path.parent), store=store, bad_clips="drop")
    assert table.column("id") == ["12345678901"]
