from backstream._http._message cimport RequestReader
from backstream._slice cimport Slice


# What a head asks of the proxy itself. Slices without size: it does not say.
cdef struct Asked:
    Slice host
    Slice client_id
    Slice timeout           # the text of x-backstream-request-timeout
    Slice request_id
    bint has_client_id
    bint takes_trailers
    bint awaits_continue    # sends its body when it is told to


cdef double timeout_of(const Asked* asked, double usual, double most) except? -1
cdef int take_fields(RequestReader reader, Asked* asked, bytes name, bint keep_x_forwarded) except -1
