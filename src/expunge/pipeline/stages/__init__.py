"""What each kind of stage computes, from stored inputs to stored outputs: one kind a file, see `StageKind`."""
