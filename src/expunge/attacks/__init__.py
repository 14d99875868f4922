"""Attacks try to bring forgotten knowledge back. One attack per file."""
