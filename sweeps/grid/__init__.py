"""The points of a sweep: reading its file, composing each point's configuration, writing the manifest at launch."""
