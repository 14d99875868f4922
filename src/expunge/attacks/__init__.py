"""Ways to bring forgotten knowledge back, one a file."""
