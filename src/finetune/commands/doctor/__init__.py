"""doctor: list what this machine provides and lacks for a recipe, and recommend the recipe that fits best."""
