"""The planning wing: what a run will do, worked out before it starts."""
