"""The gate of a CI job: recipes and bundles against their budgets, and against a baseline that was committed."""
