"""The command line: one module a command group, loaded when it is called.

`main.py` is the entry; `errors.py` says which error ends with which status; `output.py` how values become text. Commands hold no logic of
their own: they call the client, the node and the local cluster.
"""
