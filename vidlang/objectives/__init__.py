"""Floor 4: one training objective a file; each exposes `loss(outputs, batch, **config) -> (scalar, scalars)`."""
