"""Click -> cart -> order traffic with known probabilities, and each method's distance from them (see README.md)."""
