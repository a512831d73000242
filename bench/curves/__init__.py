"""Scaling curves: what an operation costs as one thing grows. Resumable: points that are there are not measured again."""
