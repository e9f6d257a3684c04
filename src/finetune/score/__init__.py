"""score: what an answer is worth: the scorers of params.yaml, and the servers that judge or answer."""
