"""What a request tells the service of its way: who asked (Forwarded, X-Forwarded-…), through whom (Via), under which
id (X-Request-ID).

Rules that hold here:
- What clients say of themselves in Forwarded and X-Forwarded-… is dropped. Only what a trusted peer says is kept and
  added to, and only in the one of the two forms that it is trusted to write: X-Forwarded-… with `x_forwarded`, else
  Forwarded.
- What is the same for all requests of a connection is made once, in `Peer`. A request adds pointers to it.
- The values of one request live until the next one's are made: its head is encoded in between.
"""

import os

from libc.stdint cimport uint64_t
from libc.string cimport memcmp, memcpy

from backstream._buffer cimport Buffer, append
from backstream._codec cimport Field, FieldArray, RequestHead
from backstream._grammar cimport equals_lower, is_client_id, is_token
from backstream._http._message cimport (
    FIELD_FORWARDED, FIELD_OTHER, FIELD_X_FORWARDED_FOR, FIELD_X_FORWARDED_HOST, FIELD_X_FORWARDED_PROTO,
)
from backstream._http._trust cimport (
    MAX_HOPS, Address, Hop, Networks, find_client, read_address, read_forwarded, read_x_forwarded_for, write_address,
)
from backstream._slice cimport Slice, bytes_of, slice_of


cdef enum:
    ID_DIGITS = 8           # of the counter in a request id; more once they are used up


cdef class Peer:

    def __repr__(self):
        return f"<Peer {self.text.decode()}>"


cdef class Forwarding:

    def __init__(self, settings):
        self.trusted = Networks(settings.trust_forwarded) if settings.trust_forwarded else None
        self.x_forwarded = settings.x_forwarded
        # Unique to the process unless it is named: two proxies on a request's way are no loop.
        self.name = (settings.via_name or f"backstream-{os.urandom(4).hex()}").encode("ascii")
        self.via = b"1.1 " + self.name
        self.via_1_0 = b"1.0 " + self.name
        self.via_line = b"via: " + self.via + b"\r\n"
        self.id_prefix = os.urandom(6).hex().encode() + b"-"
        self.values = Buffer()

    cdef Peer peer(self, object address, bytes scheme):
        """The peer at `address`: (host, port), or None."""
        cdef Peer peer = Peer.__new__(Peer)
        cdef str host
        peer.scheme = scheme
        peer.element = b"for=unknown"
        peer.text = peer.ip = b""
        if address is not None:
            host = address[0].partition("%")[0]     # an IPv6 zone means nothing to others
            peer.address = (address[0], address[1])
            peer.ip = host.encode()
            if ":" in host:
                peer.text = f"[{host}]:{address[1]}".encode()
                peer.element = f'for="[{host}]"'.encode()
            else:
                peer.text = f"{host}:{address[1]}".encode()
                peer.element = f"for={host}".encode()
            peer.trusted = self.trusted is not None and host in self.trusted
            read_address(slice_of(peer.text), &peer.raw)
        return peer

    cdef object read_trail(self, Peer peer, FieldArray fields):
        """Takes what a trusted peer says of who asked it; returns the client's (host, port), or None for the peer.

        Raises MessageError for a malformed Forwarded.
        """
        cdef Py_ssize_t i
        cdef Field* field
        cdef const Hop* hop
        cdef Address address = peer.raw
        cdef Slice proto
        self.chain.count = self.client.size = self.scheme.size = 0
        self.earlier_forwarded = []
        self.earlier_for = []
        self.earlier_proto = self.earlier_host = None
        for i in range(fields.count):
            field = &fields.items[i]
            if field.kind == FIELD_FORWARDED:
                if not self.x_forwarded:
                    read_forwarded(field.value, &self.chain)
                    self.earlier_forwarded.append(bytes_of(field.value))
            elif not self.x_forwarded:
                continue
            elif field.kind == FIELD_X_FORWARDED_FOR:
                read_x_forwarded_for(field.value, &self.chain)
                self.earlier_for.append(bytes_of(field.value))
            elif field.kind == FIELD_X_FORWARDED_PROTO:
                self.earlier_proto = bytes_of(field.value)
            elif field.kind == FIELD_X_FORWARDED_HOST:
                self.earlier_host = bytes_of(field.value)
        hop = find_client(self.trusted, &self.chain, &address)
        if self.earlier_proto is not None:
            proto = slice_of(self.earlier_proto)
        elif hop != NULL:
            proto = hop.proto
        else:
            proto.size = 0
        if equals_lower(proto, b"https", 5):
            self.scheme = slice_of(b"https")
        elif equals_lower(proto, b"http", 4):
            self.scheme = slice_of(b"http")
        if hop == NULL:
            return None
        self.client.ptr = self.client_text
        self.client.size = write_address(&address, self.client_text)
        host, _, port = bytes_of(self.client).decode("ascii").rpartition(":")
        return host.strip("[]"), int(port)

    cdef int take_request_id(self, Slice given, RequestId* request_id) noexcept:
        """Keeps the id that a request brings, if it is 1 to 128 visible ASCII characters, or makes one."""
        cdef Py_ssize_t size = len(self.id_prefix)
        cdef uint64_t number
        cdef int digits = ID_DIGITS
        if is_client_id(given):     # the same grammar
            memcpy(request_id.text, given.ptr, given.size)
            request_id.size = given.size
            return 0
        self.ids_made += 1
        number = self.ids_made
        memcpy(request_id.text, <const char*>self.id_prefix, size)
        while digits < 16 and number >> (4 * digits):
            digits += 1
        request_id.size = size + digits
        while digits:
            digits -= 1
            request_id.text[size + digits] = (<const char*>b"0123456789abcdef")[number & 15]
            number >>= 4
        return 0

    cdef int add_fields(self, Peer peer, RequestHead* head, FieldArray fields, const RequestId* request_id) except -1:
        """Adds to a head what it is to say of its way, its `peer` and `scheme` included. The rest of it is complete."""
        cdef Field field
        head.peer = slice_of(peer.text)
        head.scheme = slice_of(peer.scheme)
        if peer.trusted:
            if self.client.size:
                head.peer = self.client
            if self.scheme.size:
                head.scheme = self.scheme
        field.kind = FIELD_OTHER
        # RFC 9110 §7.6.3: the version is that of the message received.
        field.name = slice_of(b"via")
        field.value = slice_of(self.via if head.http_minor else self.via_1_0)
        fields.add(field)
        field.name = slice_of(b"forwarded")
        field.value = self._forwarded(peer, head.authority)
        fields.add(field)
        field.name = slice_of(b"x-request-id")
        field.value.ptr = request_id.text
        field.value.size = request_id.size
        fields.add(field)
        if self.x_forwarded:
            self._add_x_forwarded(peer, head.authority, fields)
        head.fields = fields.items
        head.field_count = fields.count
        return 0

    cdef Slice _forwarded(self, Peer peer, Slice authority) except *:
        """The value of Forwarded: our element, behind those that a trusted peer sent."""
        cdef Buffer out = self.values
        cdef Slice value
        cdef bytes earlier
        cdef bint quoted = not is_token(authority)
        out.size = 0
        if peer.trusted:
            earlier = self._earlier_elements()
            if earlier:
                append(out, <const char*>earlier, len(earlier))
                append(out, b", ", 2)
        append(out, <const char*>peer.element, len(peer.element))
        if authority.size:
            # host[:port] has no character that would need a backslash.
            append(out, b';host="', 6 + quoted)
            append(out, authority.ptr, authority.size)
            append(out, b'"', quoted)
        append(out, b";proto=", 7)
        append(out, <const char*>peer.scheme, len(peer.scheme))
        value.ptr = out.data
        value.size = out.size
        return value

    def _earlier_elements(self):
        """What Forwarded said, or what X-Forwarded-For said in its form (RFC 7239 §7.4)."""
        cdef list elements = []
        cdef Address address
        cdef char text[ADDRESS_TEXT]
        cdef Py_ssize_t i, first = self.chain.count - MAX_HOPS
        if not self.x_forwarded:
            return b", ".join(self.earlier_forwarded)
        for i in range(first if first > 0 else 0, self.chain.count):
            if read_address(self.chain.hops[i % MAX_HOPS].node, &address):
                node = text[:write_address(&address, text)]
                if not address.port:
                    node = node.removesuffix(b":0")
                elements.append(b'for="%b"' % node if b":" in node else b"for=" + node)
            else:
                elements.append(b"for=unknown")
        return b", ".join(elements)

    cdef int _add_x_forwarded(self, Peer peer, Slice authority, FieldArray fields) except -1:
        cdef Field field
        field.kind = FIELD_OTHER
        field.name = slice_of(b"x-forwarded-for")
        field.value = slice_of(peer.ip)
        if peer.trusted and self.earlier_for:
            self.earlier_for.append(peer.ip)
            self.earlier_for = [b", ".join(self.earlier_for)]
            field.value = slice_of(<bytes>self.earlier_for[0])
        if field.value.size:
            fields.add(field)
        field.name = slice_of(b"x-forwarded-proto")
        field.value = slice_of(self.earlier_proto if peer.trusted and self.earlier_proto else peer.scheme)
        fields.add(field)
        field.name = slice_of(b"x-forwarded-host")
        field.value = slice_of(self.earlier_host) if peer.trusted and self.earlier_host else authority
        if field.value.size:
            fields.add(field)
        return 0


cdef bint names_us(Slice via, bytes name) noexcept:
    """Whether one of Via's members was written under `name`: protocol, blanks, name, and perhaps a comment."""
    cdef const char* at = via.ptr
    cdef const char* end = via.ptr + via.size
    cdef const char* word
    cdef int words = 0, depth
    while at < end:
        if at[0] == c' ' or at[0] == c'\t':
            at += 1
        elif at[0] == c',':
            words = 0
            at += 1
        elif at[0] == c'(':
            depth = 0
            while at < end:
                if at[0] == c'\\':
                    at += 1
                elif at[0] == c'(':
                    depth += 1
                elif at[0] == c')':
                    depth -= 1
                at += 1
                if depth == 0:
                    break
        else:
            word = at
            while at < end and at[0] != c' ' and at[0] != c'\t' and at[0] != c',' and at[0] != c'(':
                at += 1
            words += 1
            if words == 2 and at - word == len(name) and memcmp(word, <const char*>name, len(name)) == 0:
                return True
    return False
