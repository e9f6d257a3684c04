"""exps, compare and seeds: the differences between runs, and how much of them is chance."""
