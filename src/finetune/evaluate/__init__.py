"""evaluate: run baseline and candidate on the test split in one session, and measure their cost."""
