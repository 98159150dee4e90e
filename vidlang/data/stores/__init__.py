"""Stores of chunks: how each kind lies on disk, is indexed, read, written and checked; chunks.py is the door."""
