"""One PgBouncer on a Linux host: what it takes to deploy it, and to pause, point and resume it."""
