"""Claims of the explanations."""
