"""Executors, which run tasks; one file each, see `pipeline/executor.py`."""
