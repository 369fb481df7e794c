"""What the comparisons share: runs that resume, one way to tune and train, tables and charts (see README.md)."""
