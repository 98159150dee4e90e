"""From videos to a store: what to cut, the cutting, and a run that survives any kill; precut.py is the door."""
