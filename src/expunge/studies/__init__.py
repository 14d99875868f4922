"""Papers, one a folder: claims declared first (`claims.toml`), then measured (`study.py`)."""
