"""What everything else may use: errors, parts, the registry, the spec and the record. No torch."""
