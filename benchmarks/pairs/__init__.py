"""The systems whose role changes are compared: each a pair of servers on this machine that can be told to change."""
