"""Random changes of inputs that training sees and evaluation does not: one a file."""
