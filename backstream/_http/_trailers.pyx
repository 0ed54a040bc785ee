"""Which fields may stand behind a body (RFC 9110 §6.5.1).

Not those that say how a message is framed, where it goes, who sends it, under which condition or limit it is
processed, or what its content is: who acts on them has read them before the body. What is left is what comes to be
known while a body is sent: digests, signatures, statuses, timings. The rule holds in both directions and on both
sides of the tunnel, so that neither relies on the other.
"""

from backstream._codec cimport Field
from backstream._grammar cimport is_connection_field
from backstream._slice cimport Slice, bytes_of


cdef frozenset FORBIDDEN = frozenset((
    # framing and the connection (also those that `is_connection_field` knows)
    b"close", b"te", b"trailer",
    # routing
    b"forwarded", b"max-forwards", b"via",
    # who asks, for what, and what answer will do (Accept-Ranges is an answer's, and may: RFC 9110 §14.3)
    b"accept", b"accept-charset", b"accept-encoding", b"accept-language", b"authorization", b"cookie", b"expect",
    b"from", b"origin", b"pragma", b"proxy-authorization", b"range", b"referer", b"user-agent", b"x-http-method",
    b"x-http-method-override", b"x-method-override", b"x-real-ip", b"x-request-id",
    # how an answer is to be taken
    b"age", b"cache-control", b"date", b"expires", b"location", b"proxy-authenticate", b"retry-after", b"set-cookie",
    b"vary", b"warning", b"www-authenticate",
))

# Whole families: conditions, the content's format, security policies, the fields that this project or a proxy sets.
cdef tuple FORBIDDEN_PREFIXES = (
    b"access-control-", b"content-", b"if-", b"sec-", b"x-backstream-", b"x-forwarded-",
)

# RFC 9530 §2 names it as a trailer.
cdef bytes CONTENT_DIGEST = b"content-digest"


cdef bint may_be_trailer(Slice lower_name) except -1:
    """Whether a field with this name, in lower case, may come as a trailer."""
    cdef bytes name
    if is_connection_field(lower_name):
        return False
    name = bytes_of(lower_name)
    if name in FORBIDDEN:
        return False
    return not name.startswith(FORBIDDEN_PREFIXES) or name == CONTENT_DIGEST


cdef Py_ssize_t keep_trailers(Field* fields, Py_ssize_t count) except -1:
    """Moves the fields that may be trailers to the front; returns how many they are."""
    cdef Py_ssize_t i, kept = 0
    for i in range(count):
        if may_be_trailer(fields[i].name):
            if kept != i:
                fields[kept] = fields[i]
            kept += 1
    return kept


def is_trailer(bytes name):
    """Whether a field called `name`, in lower case, may come as a trailer; for tests."""
    cdef Slice lower_name
    lower_name.ptr = <const char*>name
    lower_name.size = len(name)
    return may_be_trailer(lower_name)
