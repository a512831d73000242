"""The walk through docs/operations.md on a running cluster under load: `python -m tests.acceptance`, or `make acceptance`."""
