"""Weights of published models: one family a file, names mapped both ways, nothing left unsaid."""
