"""Storage: the commit log and the state engines.

`log` has the protocols `LogReader` and `CommitLog` and the log of files; `memory_log` the one in memory; `engine` the
protocols of state engines and the one in memory; `rocksdb` and `lmdb` one engine each; `lock` the ownership of a directory.
"""
