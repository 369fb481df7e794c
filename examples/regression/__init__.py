"""Regression as progressive tasks, beside plain regression (see README.md)."""
