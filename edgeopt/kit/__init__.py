"""What runs on a device with Python, numpy and one runtime: `bench` and `doctor`, as `edgeopt` and as `kit.pyz`."""
