"""Processes of a run: signals, running stages, status, background runs."""
