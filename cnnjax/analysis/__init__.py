"""What a network is and sees."""

from cnnjax.analysis import pictures

__all__ = ["pictures"]
