"""The forward pass of each architecture by its name in `ModelConfig`."""

from collections.abc import Callable

from models import llama, qwen2
from models.forward import Forward

ARCHITECTURES: dict[str, Callable[[Forward], None]] = {"llama": llama.forward, "qwen2": qwen2.forward}
