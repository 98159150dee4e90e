"""Floor 5: one protocol a file; each exposes `Evaluator(predict, data, **config).run(params) -> dict`."""
