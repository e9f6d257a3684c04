"""rehearse: run the recipe and its data through every stage on a shrunken base model, on any machine."""
