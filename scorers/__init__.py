"""Scorers of your own; README.md says how."""
