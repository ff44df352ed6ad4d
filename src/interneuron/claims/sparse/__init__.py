"""Claims of the methods of `interneuron.sparse`."""
