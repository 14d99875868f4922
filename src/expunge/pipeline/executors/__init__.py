"""Where tasks run; one executor a file, see `pipeline/executor.py`."""
