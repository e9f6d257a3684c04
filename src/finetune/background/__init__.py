"""Runs apart from the terminal: detach, status, stop."""
