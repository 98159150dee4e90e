"""Command-line mains of a few lines over importable functions."""
