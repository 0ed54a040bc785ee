"""What the proxy answers itself, as a request's final recipient (RFC 9110 §7.6.2, §9.3.7, §9.3.8)."""

from backstream._codec cimport BODY_NONE, Field
from backstream._http._message cimport FIELD_MAX_FORWARDS, RequestReader
from backstream._slice cimport bytes_of, equals, slice_of

from backstream._http.errors import MessageError


cdef str METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
cdef frozenset SECRETS = frozenset((b"authorization", b"cookie", b"proxy-authorization"))
cdef enum:
    MOST_DIGITS = 18        # of Max-Forwards


def allowed(bint trace):
    """The value of Allow."""
    return METHODS + ", TRACE" if trace else METHODS


def options_answer(bint trace):
    """The field lines and the body of a 200 that OPTIONS is told."""
    return [f"allow: {allowed(trace)}"], b""


cdef object own_answer(RequestReader reader, bint trace):
    """For OPTIONS and TRACE: the field lines and the body of a 200 where the request ends here, else None.

    Counts down the Max-Forwards of a request that goes on. Called while `reader.fields` are as they came, since that is
    what TRACE shows. Raises MessageError.
    """
    cdef bint options = equals(reader.method, b"OPTIONS", 7)
    cdef Field* field
    cdef Field* found = NULL
    cdef Py_ssize_t i
    cdef list lines
    if not options and not equals(reader.method, b"TRACE", 5):
        return None
    if not options and not trace:
        raise MessageError(405, "TRACE is not served here", "http_request_denied")
    if not options and reader.body != BODY_NONE:
        raise MessageError(400, "TRACE with a body")
    for i in range(reader.fields.count):
        field = &reader.fields.items[i]
        if field.kind == FIELD_MAX_FORWARDS:
            if found != NULL:
                raise MessageError(400, "more than one Max-Forwards")
            found = field
    if found == NULL:
        return None
    if not bytes_of(found.value).isdigit() or found.value.size > MOST_DIGITS:
        raise MessageError(400, "Max-Forwards is no number")
    hops = int(bytes_of(found.value))
    if hops:
        reader.max_forwards = b"%d" % (hops - 1)
        found.value = slice_of(reader.max_forwards)
        return None
    if options:
        return options_answer(trace)
    lines = [b"TRACE %b HTTP/1.%d" % (bytes_of(reader.target), reader.minor)]
    for i in range(reader.fields.count):
        name = bytes_of(reader.fields.items[i].name)
        if name not in SECRETS:
            lines.append(b"%b: %b" % (name, bytes_of(reader.fields.items[i].value)))
    return ["content-type: message/http"], b"\r\n".join(lines) + b"\r\n\r\n"
