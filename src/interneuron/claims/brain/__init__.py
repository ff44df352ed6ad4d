"""Claims about models of brain recordings."""
