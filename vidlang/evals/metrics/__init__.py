"""Metrics as pure numpy functions on arrays in host memory."""
