"""A toy model and a toy pipeline whose answers are known, for tests of protocols."""

import functools
import threading

import numpy as np

from vidlang.data.clips import ClipTable
from vidlang.evals import _embed, captioning
from vidlang.nn.generation import Generated

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

    def __init__(self, table, seen, *, batch_size=4, process=0, processes=1, broken=(), tokenizer=None):
        self.table, self.seen, self.batch_size, self.tokenizer = table, seen, batch_size, tokenizer
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


class Speaker(ToyPredict):
    """A captioner that knows what to say: of a clip with n times "red" in it, the n-th of its sentences.

    It asks for all that the real one asks for, and its `heard` are the prompts. A choice's tokens are worth nothing
    where the clip's sentence has them, and -1 else; the end of a text is worth `end`.
    """

    def __init__(self, said, tokenizer, *, end=-0.5, gather=lambda x: x):
        super().__init__(gather)
        self.said, self.tokenizer, self.end = said, tokenizer, end
        self.heard, self.settings = {}, []

    def __call__(self, method, params, settings=None, /, **arrays):
        assert method in self.required, "an evaluator says what it needs before anything is trained"
        rows = {len(array) for array in arrays.values()}
        assert len(rows) == 1, "all arrays have equally many rows"
        self.rows.setdefault(method, []).append(rows.pop())
        if method != "generate":
            return self.gather(getattr(self, f"_{method}")(params, **arrays).astype(np.float32))
        self.settings.append(settings)
        made = self._generate(params, settings, **arrays)
        return Generated(*(self.gather(leaf) for leaf in (made.tokens_BSN, made.length_BS, made.score_BS)))

    def _see(self, params, video_BTHWC):
        return seen_counts(video_BTHWC)[:, None, :2]

    def _sentences(self, visual_BQD):
        return [self.said[int(round(float(number)))] for number in visual_BQD[:, 0, WORDS.index("red")]]

    def _generate(self, params, settings, *, visual_BQD, prompt_BL, length_B, rows_B):
        tokens_BSN = np.zeros((len(rows_B), 1, settings.max_new), np.int32)
        length_BS = np.zeros((len(rows_B), 1), np.int32)
        for place, sentence in enumerate(self._sentences(visual_BQD)):
            assert prompt_BL[place, length_B[place] - 1] and not prompt_BL[place, length_B[place] :].any()
            self.heard[int(rows_B[place])] = prompt_BL[place, : length_B[place]].tolist()
            ids = self.tokenizer.encode([sentence])[0, 1:]
            ids = ids[ids != 0][: settings.max_new]
            tokens_BSN[place, 0, : len(ids)], length_BS[place] = ids, len(ids)
        return Generated(tokens_BSN, length_BS, -length_BS.astype(np.float32))

    def _likelihood(self, params, visual_BQD, text_BL, prompt_B):
        found_B2 = np.zeros((len(text_BL), 2))
        for place, sentence in enumerate(self._sentences(visual_BQD)):
            known = set(self.tokenizer.encode([sentence])[0].tolist())
            ids = text_BL[place][text_BL[place] != 0].tolist()
            self.heard.setdefault(sentence, set()).add(tuple(ids[: prompt_B[place]]))
            worth = [self.end if i == self.tokenizer.end_id else 0.0 if i in known else -1.0 for i in ids]
            found_B2[place] = sum(worth[prompt_B[place] :]), len(worth) - prompt_B[place]
        return found_B2


class TwoViews(ToyData):
    """Each batch comes once for each view; the second sees one ball more, and nothing of row 1."""

    def batches(self):
        for batch in super().batches():
            for view in range(2):
                video, valid = batch["video_BTHWC"].copy(), batch["valid_B"].copy()
                video[:, :, 0, WORDS.index("ball"), :] += view
                valid &= (batch["index_B"] != 1) | (view == 0)
                yield {**batch, "video_BTHWC": video, "valid_B": valid, "view_B": np.full(len(valid), view)}


def speaking(said, tokenizer):
    """What `run_in_processes` takes beside the clips, for captioners that say this, two clips at a time."""
    predict = functools.partial(Speaker, said, tokenizer)
    return {"predict": predict, "params": {}, "batch_size": 2, "tokenizer": tokenizer}


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
            results[number] = (make(predict(gather=gather), toy).run(params), toy)
        except BaseException:
            barrier.abort()
            raise

    for module in (_embed, captioning):
        monkeypatch.setattr(module, "process_of_all", lambda: (here.process, count))
    threads = [threading.Thread(target=process, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
