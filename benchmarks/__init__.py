"""What harmony_pulumi costs, always as a ratio or difference between two sides that are measured in turn.

`python -m benchmarks` runs all; `python -m benchmarks deploy`, `overhead`, `import` or `switchover` runs one. Each
prints tables, or JSON with `--json`.
"""
