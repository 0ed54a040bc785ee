"""Where a request goes: its target and authority (RFC 9112 §3), and by these the client id, where no field names one.

The order, the field first: host (an exact one before a domain), path (the longest before shorter ones), default id.
"""

from urllib.parse import unquote_to_bytes

from libc.string cimport memchr, memcmp

from backstream._codec cimport RequestHead
from backstream._grammar cimport equals_lower, is_authority, is_client_id, is_target
from backstream._http._message cimport RequestReader
from backstream._slice cimport Slice, bytes_of, equals, slice_of

from backstream._http.errors import MessageError
from backstream.config import parse_host_route, parse_path_route


cdef int read_target(RequestReader reader, RequestHead* head) except -1:
    """Judges the target and sets the head's `target`, and `authority` where it has one: it is worth more than Host.

    It is in origin-form, `*` for OPTIONS, or in absolute-form. Raises MessageError.
    """
    cdef Slice target = reader.target
    cdef Py_ssize_t start = 7, at
    cdef bint options = equals(reader.method, b"OPTIONS", 7)
    if target.ptr[0] != c'/' and not equals(target, b"*", 1):
        if target.size > 8 and equals_lower(_first(target, 8), b"https://", 8):
            start = 8
        elif not (target.size > 7 and equals_lower(_first(target, 7), b"http://", 7)):
            raise MessageError(400, "the target is neither a path nor an http URL")
        at = start
        while at < target.size and target.ptr[at] != c'/' and target.ptr[at] != c'?':
            at += 1
        head.authority.ptr = target.ptr + start
        head.authority.size = at - start
        if not is_authority(head.authority):
            raise MessageError(400, "the target's authority is no host[:port]")
        target.ptr += at
        target.size -= at
        if target.size == 0:
            target = slice_of(b"*" if options else b"/")
        elif target.ptr[0] == c'?':
            reader.target_copy = b"/" + bytes_of(target)
            target = slice_of(reader.target_copy)
    if not is_target(target) or (target.ptr[0] == c'*' and not options):
        raise MessageError(400, "the target has characters that may not stand in it")
    head.target = target
    return 0


cdef inline Slice _first(Slice s, Py_ssize_t size) noexcept:
    s.size = size
    return s


cdef class Router:

    def __init__(self, settings):
        self.hosts = {}
        self.domains = set()
        self.paths = []
        for text in settings.route_host:
            host, client_id = parse_host_route(text)
            if client_id is None:
                self.domains.add(host.encode())
            else:
                self.hosts[host.encode()] = client_id.encode()
        for text in settings.route_path:
            prefix, client_id = parse_path_route(text)
            self.paths.append((prefix.encode(), None if client_id is None else client_id.encode()))
        self.paths.sort(key=lambda route: len(route[0]), reverse=True)
        self.default_id = settings.default_id.encode() if settings.default_id is not None else None

    cdef bytes route(self, RequestHead* head):
        """The id, or None. Takes the prefix that a path route stands for off the head's target.

        Raises MessageError where the id that a route finds can be none.
        """
        cdef bytes client_id = None
        if self.hosts or self.domains:
            client_id = self._by_host(head)
        if client_id is None and self.paths:
            client_id = self._by_path(head)
        if client_id is None:
            return self.default_id
        if not is_client_id(slice_of(client_id)):
            raise MessageError(400, "the id in the host or path is not 1 to 128 visible ASCII characters")
        return client_id

    cdef bytes _by_host(self, RequestHead* head):
        cdef bytes host = bytes_of(head.authority).lower()
        cdef bytes label, client_id
        if not host.endswith(b"]"):
            host = host.rpartition(b":")[0] or host
        host = host.removesuffix(b".")
        client_id = self.hosts.get(host)
        if client_id is None and self.domains:
            label, _, host = host.partition(b".")
            if label and host in self.domains and label.replace(b"-", b"").replace(b"_", b"").isalnum():
                return label
        return client_id

    cdef bytes _by_path(self, RequestHead* head):
        cdef Slice target = head.target
        cdef Py_ssize_t size, at
        cdef const char* mark = <const char*>memchr(target.ptr, c'?', target.size)
        cdef Py_ssize_t path = target.size if mark == NULL else mark - target.ptr
        cdef bytes prefix, client_id, found
        for prefix, client_id in self.paths:
            size = len(prefix)
            if client_id is not None:
                # The prefix, or the same without its last "/".
                at = size - 1
                if path < at or path > at and target.ptr[at] != c'/':
                    continue
                if memcmp(target.ptr, <const char*>prefix, at) != 0:
                    continue
                found = client_id
            else:
                if path <= size or memcmp(target.ptr, <const char*>prefix, size) != 0:
                    continue
                at = size
                while at < path and target.ptr[at] != c'/':
                    at += 1
                if at == size:
                    continue
                found = unquote_to_bytes(target.ptr[size:at])
            self.prefix = target.ptr[:at]
            head.prefix = slice_of(self.prefix)
            head.target.ptr += at
            head.target.size -= at
            if at == path:
                self.target = b"/" + bytes_of(head.target)
                head.target = slice_of(self.target)
            return found
        return None
