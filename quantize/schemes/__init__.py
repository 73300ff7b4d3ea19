"""One file a scheme, each exposing `SCHEME`; the first line of its docstring says what it does."""
