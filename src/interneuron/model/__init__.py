"""Sites, reads and edits on any PyTorch module."""
