"""Recipes: a scheme's own with what the user changed, and the file that says the same as the command's flags."""
