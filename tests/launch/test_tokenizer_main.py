"""A tokenizer learnt from a dataset on the command line, and what a slip is answered with."""

import pytest

from vidlang.data.stores.writer import CutVideo, write_store
from vidlang.data.tokenizer import Tokenizer


@pytest.fixture
def flags(tmp_path):
    """Flags that name a dataset of one's own with two videos and their sentences."""
    videos = [CutVideo(name, 10, 64, 48, [b"unread"], [50]) for name in ("a", "b")]
    write_store(tmp_path / "store", videos, {"fps": 10})
    (tmp_path / "train.csv").write_text("video,text\na.mp4,The dog sleeps\nb.mp4,the DOG barks loudly\n")
    return [f"--root={tmp_path}", f"--store={tmp_path}/store", f"--output={tmp_path}/new/tokenizer.json"]


def test_words_are_kept_whole_where_asked(launch, flags, tmp_path):
    end = launch("launch.tokenizer", *flags, "--words")
    assert end.code == 0, end.err
    tokenizer = Tokenizer(tmp_path / "new" / "tokenizer.json", 8)
    # Four special tokens, then the, dog, sleeps, barks and loudly.
    assert tokenizer.vocab_size == 9 and "9 tokens" in end.out
    assert "4 tokens on average" not in end.out and "the longest 6" in end.out
    ids_NL = tokenizer.encode(["the dog barks", "the cat barks"])
    assert (ids_NL[0] != ids_NL[1]).sum() == 1


def test_pieces_are_as_many_as_asked_for(launch, flags, tmp_path):
    end = launch("launch.tokenizer", *flags, "--vocab_size=30")
    assert end.code == 0, end.err
    assert Tokenizer(tmp_path / "new" / "tokenizer.json", 8).vocab_size <= 30


def test_mistakes_are_one_sentence(launch, flags):
    end = launch("launch.tokenizer", *flags, "--dataset=video")
    assert end.code == 2 and "did you mean 'videos'?" in end.err
    end = launch("launch.tokenizer", *flags, "--option=ignore")
    assert (end.code, end.err) == (2, "error: --option must be name=text, found 'ignore'\n")


def test_an_output_that_is_a_folder_is_refused_before_anything_is_read(launch, tmp_path):
    for folder in (str(tmp_path), f"{tmp_path}/new/"):
        end = launch("launch.tokenizer", "--root=/none", "--store=/none", f"--output={folder}")
        assert end.code == 2 and f"{folder} is a folder, and a tokenizer is a file" in end.err
    assert not list(tmp_path.iterdir())
