"""params.yaml and the recipes, typed and strict."""
