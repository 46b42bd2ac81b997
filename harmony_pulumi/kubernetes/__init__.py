"""PostgreSQL on Kubernetes, run by CloudNativePG: what is declared, and what can be done with it."""
