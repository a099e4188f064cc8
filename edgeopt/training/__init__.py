"""Training a student after a teacher: loop, losses, data, checkpoints. Only `distillation` knows stages' jobs."""
