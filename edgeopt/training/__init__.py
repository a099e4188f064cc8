"""Training a student after a teacher: the loop, its losses, data, checkpoints. Knows nothing of recipes or stages."""
