"""Files: atomic, hashed, manifested and locked."""
