"""The files of the YOLO plugin (2.9.8 and its bash predecessor) in ``.yolo-planning/``."""

PLANNING = ".yolo-planning"
