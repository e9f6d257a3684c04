"""Intervals, tests and sample sizes: what the verdict rests on, no surer than the data allows."""
