from backstream._agents cimport AgentLink


cdef class AppLink(AgentLink):
    """The proxy's end of an agent's session whose WebSocket is an ASGI server's."""
    cdef:
        object _output                  # a future of the task that sends, while it has nothing to send
        object _ended                   # a future
