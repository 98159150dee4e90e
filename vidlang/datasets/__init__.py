"""One annotation family a file; each exposes `load(split, **config) -> ClipTable`. Never imports jax."""
