"""The `harmony` command: one module per command, and pure modules that find, judge and draw."""
