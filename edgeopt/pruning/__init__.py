"""Removing channels from a network, and measuring its statistics again. Knows nothing of recipes or stages."""
