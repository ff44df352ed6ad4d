"""Claims of the directions."""
