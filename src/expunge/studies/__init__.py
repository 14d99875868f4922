"""Studies of papers, one per folder: claims are declared first (`claims.toml`), then measured (`study.py`)."""
