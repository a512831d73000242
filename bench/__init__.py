"""What crdtkv is measured against, and how: goals, peers, limits, scaling curves, profiles. `python -m bench --help`.

Uses only what users import. Peers are optional: a row says which one is not installed.
"""
