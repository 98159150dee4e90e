"""Floor 2: Linen parts that several models share."""
