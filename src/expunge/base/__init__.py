"""The layer that all others may import: errors, parts, the registry, the spec and the record. No torch."""
