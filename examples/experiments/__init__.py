"""Shared by the comparisons: runs that resume, one way to tune and train, tables and charts (see README.md)."""
