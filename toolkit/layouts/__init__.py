"""Folders as servers want them: one file a layout, exposing a `toolkit.projects.Writer` as `LAYOUT`."""
