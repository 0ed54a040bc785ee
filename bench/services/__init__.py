"""What answers behind every contender, each a process or an application within the agent."""
