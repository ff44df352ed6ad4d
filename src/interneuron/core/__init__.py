"""What every room shares: errors, names, cards, safe files, seeds, devices, progress."""
