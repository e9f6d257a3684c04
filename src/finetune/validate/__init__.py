"""validate: find everything that can be known before the expensive hardware is used."""
