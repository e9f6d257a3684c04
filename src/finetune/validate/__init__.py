"""validate: everything that can be known before the expensive machine is touched."""
