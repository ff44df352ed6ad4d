"""Claims of the methods of `interneuron.circuit`."""
