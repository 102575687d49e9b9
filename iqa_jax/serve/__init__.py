"""A page on this machine that judges photographs, and REST beside it."""
