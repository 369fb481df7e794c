"""The tests. A package, so that they import what they share: :mod:`tests.support`."""
