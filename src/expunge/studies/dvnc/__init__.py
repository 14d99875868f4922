"""The study of discrete-valued neural communication (2107.02367)."""
