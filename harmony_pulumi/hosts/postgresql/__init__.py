"""PostgreSQL servers on a host."""
