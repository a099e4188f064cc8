"""What runs on a device with Python, numpy and one runtime: `bench`, `verify`, `doctor`; as `edgeopt` or `kit.pyz`."""
