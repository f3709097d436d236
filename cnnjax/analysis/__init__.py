"""What a network is and sees."""

from cnnjax.analysis import drawing, pictures, reach, summary

__all__ = ["drawing", "pictures", "reach", "summary"]
