"""A finished run elsewhere: over a DVC remote to another machine, or as one archive to whoever uses the adapter."""
