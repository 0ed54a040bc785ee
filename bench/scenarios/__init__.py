"""The things measured, a file each: how the load is made, what a turn takes, the columns of its table."""
