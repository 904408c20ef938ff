"""Numbered migrations, one folder a dialect."""
