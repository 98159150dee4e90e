"""Floor 3: one named model a file; each exposes `Model` with `inputs`, the batch fields it is called with."""
