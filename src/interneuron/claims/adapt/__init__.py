"""Claims of the methods that adapt a frozen model."""
