"""A trained model in files that run without vidlang: StableHLO for JAX, ONNX for everything else."""
