"""Papers, one a file: claims declared first, then measured."""
