"""What is to be forgotten, one construction a file."""
