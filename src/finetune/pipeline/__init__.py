"""Information on a run from DVC and git."""
