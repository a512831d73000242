"""The goals: one registered row a path, each with what it is held against, and how to run it alone."""
