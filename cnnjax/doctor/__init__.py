"""`cnnjax doctor`: what one runs first on a new machine: does it compute right, repeat its bits, and how fast."""
