"""exps, compare and seeds: what tells several runs apart, and how much of it is luck."""
