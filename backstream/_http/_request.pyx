"""What a request's head asks of the proxy itself; the rest of its fields goes on.

Whatever may stand once and stands twice is an error where it decides something: two answers are none.
"""

from libc.string cimport memset

from backstream._codec cimport Field, FieldArray
from backstream._grammar cimport equals_lower, is_authority
from backstream._http._forwarding cimport names_us
from backstream._http._message cimport (
    FIELD_CLIENT_ID, FIELD_EXPECT, FIELD_FORWARDED, FIELD_HOST, FIELD_OTHER, FIELD_REQUEST_ID, FIELD_REQUEST_TIMEOUT,
    FIELD_TE, FIELD_VIA, FIELD_X_FORWARDED, READ_FINISHED, RequestReader, goes_on, next_token,
)
from backstream._slice cimport Slice, bytes_of, slice_of

from backstream._http.errors import MessageError
from backstream.config import parse_duration
from backstream.errors import ConfigurationError


cdef enum:
    MAX_DURATION = 100      # bytes: thousands of terms would take longer to read than the request is worth


cdef double LEAST_LIMIT = 0.001     # seconds


cdef int take_fields(RequestReader reader, Asked* asked, bytes name, bint keep_x_forwarded) except -1:
    """Leaves in `reader.fields` what goes on, fills `asked` with what does not.

    name: ours, in Via. keep_x_forwarded: X-Forwarded-… that is not made anew goes on, too.

    Raises MessageError.
    """
    cdef FieldArray fields = reader.fields
    cdef Field* field
    cdef Slice rest, token
    cdef Py_ssize_t i, count = 0
    cdef int hosts = 0, request_ids = 0
    memset(asked, 0, sizeof(Asked))
    for i in range(fields.count):
        field = &fields.items[i]
        if field.kind != FIELD_OTHER:
            if field.kind == FIELD_HOST:
                hosts += 1
                asked.host = field.value
                continue
            elif field.kind == FIELD_TE:
                rest = field.value
                while next_token(&rest, &token):
                    if equals_lower(token, b"trailers", 8):
                        asked.takes_trailers = reader.minor > 0     # there are no chunks in HTTP/1.0
                continue
            elif field.kind == FIELD_EXPECT:
                rest = field.value
                field.value.size = 0
                while next_token(&rest, &token):
                    if not equals_lower(token, b"100-continue", 12):
                        raise MessageError(417, "the only expectation met here is 100-continue")
                    field.value = token     # what goes on is one member, not a list that others may not read
                if field.value.size == 0:
                    continue
                # RFC 9110 §10.1.1: nothing to wait for in HTTP/1.0 and without a body.
                if reader.minor == 0 or reader.state == READ_FINISHED or asked.awaits_continue:
                    continue
                asked.awaits_continue = True
            elif field.kind == FIELD_CLIENT_ID:
                if asked.has_client_id:
                    raise MessageError(400, "more than one header x-backstream-client-id")
                asked.has_client_id = True
                asked.client_id = field.value
            elif field.kind == FIELD_REQUEST_TIMEOUT:
                if asked.timeout.ptr != NULL:
                    raise MessageError(400, "more than one header x-backstream-request-timeout")
                asked.timeout = field.value
            elif field.kind == FIELD_REQUEST_ID:
                request_ids += 1
                asked.request_id = field.value
                continue
            elif field.kind == FIELD_VIA:
                if names_us(field.value, name):
                    raise MessageError(508, "the request came through this proxy before", "proxy_loop_detected")
            elif FIELD_FORWARDED <= field.kind <= FIELD_X_FORWARDED:
                if not keep_x_forwarded or field.kind != FIELD_X_FORWARDED:
                    continue
            elif not goes_on(field.kind):
                continue
        if count != i:
            fields.items[count] = field[0]
        count += 1
    fields.count = count
    if request_ids > 1:
        asked.request_id.size = 0
    if hosts > 1 or hosts == 0 and reader.minor == 1:
        raise MessageError(400, "exactly one Host is required")
    if asked.host.size and not is_authority(asked.host):
        raise MessageError(400, "Host is no host[:port]")
    if asked.takes_trailers:
        _add_te(fields)
    return 0


cdef int _add_te(FieldArray fields) except -1:
    cdef Field te
    te.name = slice_of(b"te")
    te.value = slice_of(b"trailers")
    te.kind = FIELD_TE
    return fields.add(te)


cdef double timeout_of(const Asked* asked, double usual, double most) except? -1:
    """How long the request lets its response's head take, in seconds; 0: without limit.

    usual: where it does not say. most: the cap, 0 for none. Raises MessageError.
    """
    cdef double seconds = usual
    if asked.timeout.ptr != NULL:
        if asked.timeout.size > MAX_DURATION:
            raise MessageError(400, "header x-backstream-request-timeout: it is too long")
        try:
            seconds = parse_duration(bytes_of(asked.timeout).decode("utf-8", "replace"))
        except ConfigurationError as error:
            raise MessageError(400, f"header x-backstream-request-timeout: {error}") from None
    if seconds < 0:
        seconds = 0
    if most > 0 and (seconds == 0 or seconds > most):
        seconds = most
    # Less would round to a time budget of 0, which is none.
    return LEAST_LIMIT if 0 < seconds < LEAST_LIMIT else seconds
