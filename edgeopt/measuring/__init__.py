"""Measuring: the sampler, a candidate's process, quality, the machine's state."""
