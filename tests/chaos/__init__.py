"""Faults on purpose: seeded rounds over a tiny pipeline, each judged by the run that nothing disturbed."""
