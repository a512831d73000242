"""Instruments for users of a replicated store: how far behind each region is, and what has changed since another run."""
