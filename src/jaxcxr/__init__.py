"""Differentially private training and evaluation of chest-radiograph classifiers in JAX/Flax."""

import importlib

__version__ = "0.1.0"
__all__ = ["load_model"]  # pyright: ignore[reportUnsupportedDunderAll]
_LATE = {"load_model": "jaxcxr.inference"}


def __getattr__(name: str) -> object:
    """Import on first use: `import jaxcxr` alone loads neither jax nor anything else."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATE[name]), name)
