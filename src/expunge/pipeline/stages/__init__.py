"""What each kind of stage computes, from stored inputs to stored outputs; one file per kind, see `StageKind`."""
