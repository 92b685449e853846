"""Differentially private training and evaluation of chest-radiograph classifiers in JAX/Flax."""

__version__ = "0.1.0"
