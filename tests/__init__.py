"""A package, so that processes that a test starts can import what it asks them for."""
