"""What makes the load, each a process of its own: their cost is not that of what they measure."""
