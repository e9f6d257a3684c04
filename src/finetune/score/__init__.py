"""score: rate answers with the scorers of params.yaml, and query servers that judge or answer."""
