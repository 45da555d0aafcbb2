"""Training of the embedded default model: needs the extra `train` (PyTorch); nothing else in the project imports it."""
