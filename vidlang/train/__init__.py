"""Floor 6: optimizer, checkpoint, step, loop and stages."""
