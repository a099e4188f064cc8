"""What is known of the Coral Edge TPU without one: which operators it takes, and what its compiler says and writes."""
