"""doctor: what this machine has and lacks for a recipe, and which recipe fits best here."""
