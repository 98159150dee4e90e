"""One clip's journey, in numpy and Grain: tables, chunk store, decode and crop, tokens, batches. Never imports jax."""
