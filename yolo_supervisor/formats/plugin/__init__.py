"""The YOLO plugin's files under ``.yolo-planning/`` (version 2.9.8, with what its bash predecessor left)."""

PLANNING = ".yolo-planning"
