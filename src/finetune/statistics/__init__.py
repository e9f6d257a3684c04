"""Intervals, tests and sample sizes for the verdict, valid for the sample sizes at which they are used."""
