"""Files: atomic writes, hashes, manifests and locks."""
