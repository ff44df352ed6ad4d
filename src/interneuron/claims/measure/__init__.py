"""Claims of the measures."""
