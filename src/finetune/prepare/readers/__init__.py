"""Readers of files: compressed or not, rows of every container as a stream of batches."""
