"""Claims of the decompositions."""
