"""Claims of the layers."""
