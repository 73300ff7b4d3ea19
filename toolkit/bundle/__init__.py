"""Bundles: the folder that ships, with everything needed to run it and to verify it again."""
