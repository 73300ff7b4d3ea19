"""The page's sections, one file a subject, each from sources to blocks."""
