"""Processes of a run: signals, what is running, status, background runs."""
