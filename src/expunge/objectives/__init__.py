"""What model outputs are judged by: one objective a file."""
