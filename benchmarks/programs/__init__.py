"""The Pulumi programs that the benchmarks deploy. Providers refer to these modules, so importing one does nothing."""
