"""WHAT: one file per capability: its verbs, its configuration, its site primitives."""
