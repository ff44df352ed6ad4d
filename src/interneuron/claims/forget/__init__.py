"""Claims of the forgetting methods."""
