"""Feature stores: what a trained model made of clips, kept in plain arrays that are mapped into memory.

    STORE/store.json         format version, how clips were cut, and how many there are
    STORE/index.arrow        one row a clip: video, start, end; file, offset, count: where its vectors are
    STORE/d-768/variant.json which model this variant comes from, at which dials, and the vectors' width
    STORE/d-768/00000.npy    [vectors, width] of many clips in a row, or one file for each clip

`cuts` decides what belongs together, `writer` keeps it, `store` reads it, and `rows` gives it to the clips of a table.
A file is complete or absent, so whatever is missing can be made at any time, by anybody, in any order.
"""
