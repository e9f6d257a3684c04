"""rehearse: the very recipe and its data on a shrunken base, through every stage, on any machine."""
