"""The version of crdtkv, alone in a module so that anything may read it."""

VERSION = "0.1.0"
