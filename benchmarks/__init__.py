"""Side-by-side measurements: each module prints a ratio against a named peer measured in the same run."""
