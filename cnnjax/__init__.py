"""cnnjax: published convolutional networks in JAX and Flax, as pure functions, proved and reproducible."""

__version__ = "0.1.0"
