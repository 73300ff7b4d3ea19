"""The lowered graph into an ML Program: one small function an operator, the table of them, and the program."""
