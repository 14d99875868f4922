"""Tasks: how the forget set is constructed. One task per file."""
