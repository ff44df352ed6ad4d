"""Blocks that two or more methods use: patching, contrast groups, dose and response, likelihoods, activity."""
