"""What the tests and benchmarks share: programs under test, and stand-ins for whatever is around them."""
