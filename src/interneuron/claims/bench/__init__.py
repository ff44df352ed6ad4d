"""Claims of the benchmarks."""
