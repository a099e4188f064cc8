"""edgeopt makes trained neural networks small and fast enough for edge devices, and proves it."""

__version__ = "0.1.0"
