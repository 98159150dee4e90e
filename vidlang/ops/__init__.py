"""Floor 1: pure jnp functions; no Flax, no config."""
