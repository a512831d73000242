"""The demonstration: three regions take a real data set, conflict, are cut apart, heal, and prove that they converged.

`run.py` conducts; `workload.py` decides what is written; `regions.py` is the only module that talks to a cluster;
`verifier.py` judges from outside, by what clients were told and what they read; `lag.py` measures; `report.py` writes
`report.json` and the page. The verifier and the measurements are pure functions of what was recorded.
"""
