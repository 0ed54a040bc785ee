"""The clients by address: how many connections each has, and how often it gives its requests up.

Opening and aborting is cheap for a client and dear for the service behind: each address has a bucket of aborts, and
while it is empty its requests are refused. An address without connections is remembered until its bucket is full
again, at most RECENT of them.
"""

from collections import OrderedDict

from backstream._loop cimport monotonic


cdef enum:
    RECENT = 65536

cdef double BURST_SECONDS = 10.0    # the bucket holds the aborts of so long a time


cdef class Client:
    pass


cdef class ClientTable:
    """max_connections: of one address, 0 for no limit; aborts_rate: per second and address, 0 for no limit."""

    def __init__(self, int max_connections, double aborts_rate):
        self.max_connections = max_connections
        self.aborts_rate = aborts_rate
        self._present = {}
        self._recent = OrderedDict()

    def __len__(self):
        return len(self._present) + len(self._recent)

    cdef Client enter(self, object host):
        """A connection from `host` begins; None where it has all that it may have."""
        cdef Client client = self._present.get(host)
        if client is None:
            client = self._recent.pop(host, None)
            if client is None:
                client = Client()
                client.host = host
                client.aborts_left = self.aborts_rate * BURST_SECONDS
                client.counted_at = monotonic()
            self._present[host] = client
        elif self.max_connections and client.connections >= self.max_connections:
            return None
        client.connections += 1
        return client

    cdef int leave(self, Client client) except -1:
        """One of its connections has ended."""
        client.connections -= 1
        if client.connections:
            return 0
        del self._present[client.host]
        self._refill(client)
        if client.aborts_left < self.aborts_rate * BURST_SECONDS:
            self._recent[client.host] = client
            if len(self._recent) > RECENT:
                self._recent.popitem(last=False)
        return 0

    cdef int aborted(self, Client client) except -1:
        """It has given a request up."""
        if self.aborts_rate > 0:
            self._refill(client)
            if client.aborts_left > 0:
                client.aborts_left -= 1
        return 0

    cdef bint is_calm(self, Client client) noexcept:
        """Whether its requests are taken."""
        if self.aborts_rate <= 0 or client.aborts_left >= 1:
            return True
        self._refill(client)
        return client.aborts_left >= 1

    cdef int _refill(self, Client client) except -1:
        cdef double now = monotonic()
        client.aborts_left = min(client.aborts_left + (now - client.counted_at) * self.aborts_rate,
                                 self.aborts_rate * BURST_SECONDS)
        client.counted_at = now
        return 0
