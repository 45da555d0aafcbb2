"""The embedded default model: data, no code."""
