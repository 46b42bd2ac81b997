"""WHERE: one file per topology."""
