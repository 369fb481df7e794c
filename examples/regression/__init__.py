"""Regression as progressive tasks, compared with plain regression (see README.md)."""
