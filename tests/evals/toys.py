"""A toy model and a toy pipeline whose answers are known, for tests of protocols."""

import threading

import numpy as np

from vidlang.data.clips import ClipTable
from vidlang.evals import _embed

WORDS = ["red", "green", "blue", "ball", "box", "spins", "slides", "grows"]


class ToyPredict:
    """A video's pixels hold the words' counts and text ids are words; both are embedded by `params` [words, E].

    Its methods are the model's: those with an underscore in front, which subclasses add to.
    """

    def __init__(self, gather=lambda x: x):
        self.gather = gather
        self.rows, self.required = {}, set()

    def require(self, *methods):
        lacking = [name for name in methods if not hasattr(self, f"_{name}")]
        if lacking:
            raise ValueError(f"the model toy has no method {lacking[0]!r}, which is needed here")
        self.required |= set(methods)

    def __call__(self, method, params, **arrays):
        assert method in self.required, "an evaluator says what it needs before anything is trained"
        found = getattr(self, f"_{method}")(params, **arrays)
        self.rows.setdefault(method, []).append(len(found))
        return self.gather(found.astype(np.float32))

    def _embed_video(self, params, video_BTHWC):
        return seen_counts(video_BTHWC) @ params

    def _embed_text(self, params, text_BL):
        return told_counts(text_BL) @ params


def seen_counts(video_BTHWC):
    """How often each word is in the pixels."""
    return video_BTHWC[:, 0, 0, :, 0].astype(np.float32)


def told_counts(text_BL):
    """How often each word is in the text."""
    return np.stack([(text_BL == word).sum(axis=1) for word in range(len(WORDS))], axis=1).astype(np.float32)


class ToyData:
    """The pipeline's promise: rows in order, each process its share, the last batch padded with valid_B False."""

    def __init__(self, table, seen, *, batch_size=4, process=0, processes=1, broken=()):
        self.table, self.seen, self.batch_size = table, seen, batch_size
        self.process, self.processes, self.broken = process, processes, set(broken)
        self.encoded = []

    def batches(self):
        rows, step = len(self.table), self.batch_size * self.processes
        for start in range(0, rows, step):
            mine = np.arange(start, start + step)[self.process :: self.processes]
            index = np.minimum(mine, rows - 1)
            video = np.zeros((self.batch_size, 2, 1, len(WORDS), 3), np.uint8)
            for place, row in enumerate(index):
                for word in self.seen[row].split():
                    video[place, :, 0, WORDS.index(word), :] += 1
            valid = (mine < rows) & ~np.isin(index, list(self.broken))
            yield {"video_BTHWC": video, "index_B": np.where(mine < rows, mine, -1), "valid_B": valid}

    def encode_texts(self, texts):
        self.encoded.append(list(texts))
        ids = np.full((len(texts), 6), -1, np.int32)
        for row, text in enumerate(texts):
            ids[row, : len(text.split())] = [WORDS.index(word) for word in text.split()]
        return ids


def table_of(**columns):
    rows = len(next(iter(columns.values())))
    base = {"video": [f"v{i}" for i in range(rows)], "start": [0.0] * rows, "end": [1.0] * rows}
    return ClipTable.from_columns({**base, "texts": [["red"]] * rows, **columns})


class TwoViews(ToyData):
    """Each batch comes once for each view; the second sees one ball more, and nothing of row 1."""

    def batches(self):
        for batch in super().batches():
            for view in range(2):
                video, valid = batch["video_BTHWC"].copy(), batch["valid_B"].copy()
                video[:, :, 0, WORDS.index("ball"), :] += view
                valid &= (batch["index_B"] != 1) | (view == 0)
                yield {**batch, "video_BTHWC": video, "valid_B": valid, "view_B": np.full(len(valid), view)}


def run_in_processes(make, table, seen, count, monkeypatch, *, predict=ToyPredict, params, **data):
    """[(result, data) of each process]; a process is a thread that runs what `make(predict, data)` gives.

    A gather waits for all and joins their rows in process order.
    """
    here, barrier, slots, results = threading.local(), threading.Barrier(count), [None] * count, [None] * count

    def gather(rows):
        slots[here.process] = rows
        barrier.wait(timeout=20)
        whole = np.concatenate(slots)
        barrier.wait(timeout=20)
        return whole

    def process(number):
        here.process = number
        toy = ToyData(table, seen, process=number, processes=count, **data)
        try:
            results[number] = (make(predict(gather), toy).run(params), toy)
        except BaseException:
            barrier.abort()
            raise

    monkeypatch.setattr(_embed, "process_of_all", lambda: (here.process, count))
    threads = [threading.Thread(target=process, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
