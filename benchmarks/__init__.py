"""Scripts that measure, each with both sides in one run."""
