"""What lies in a workdir: the record of a run, its checkpoints, and its log."""
