"""What another package may bring: a backend, its compiler and a stage. The README shows it; the suites run on it."""
