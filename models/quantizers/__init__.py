"""Quantising a model after its training: what is computed from weights and from activations of a calibration text."""
