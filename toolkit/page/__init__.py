"""The page people look at: bundles, their drift by stage and module, and a search, as one self-contained HTML file."""
