"""Click -> cart -> order traffic with known probabilities, and how near each method comes to them (see README.md)."""
