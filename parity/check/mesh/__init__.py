"""The ladder across meshes: a sharded run is the run of one device, and its checkpoints fit any mesh."""
