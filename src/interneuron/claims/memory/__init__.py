"""Claims of the methods that save memory."""
