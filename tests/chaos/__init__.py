"""Fault injection: seeded rounds over a tiny pipeline, each compared with an undisturbed run."""
