"""Readers of files, compressed or not: the rows of every container as a stream of batches."""
