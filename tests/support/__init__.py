"""Shared by tests and benchmarks: programs under test, and stand-ins for their surroundings."""
