"""Recipes: one training a file, each with `get_config()`; the docstring gives command, cost and result."""
