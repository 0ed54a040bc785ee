"""The seed wire's messages to bytes (docs/reference/protocol.md), and both ways for Python callers.

What is written is canonical: members in order, defaults left out, names of fields as Go writes them, grouped, and in
JSON sorted. Bytes that are no UTF-8 are written as if they were Latin-1, since the wire has text only.
"""

import binascii
import json as _json
import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memchr, memcpy

from backstream._buffer cimport Buffer, reserve
from backstream._codec cimport BODY_SIZED, Field, FieldArray, RequestHead, ResponseHead
from backstream._message_codec cimport fill_request, fill_response, pairs_of
from backstream._protobuf cimport VARINT, member_size, put_length, put_member, put_varint, varint_size
from backstream._seed_reader cimport MAX_ID_SIZE, SEED_REQUEST, SEED_RESPONSE, SeedReader, SeedType
from backstream._seed_text cimport is_utf8, raw_path, same, stays_here, write_canonical
from backstream._slice cimport Slice, bytes_of, slice_of


cdef enum:
    ID_POOL = 256                   # ids made of one call to the system

TYPE_NAMES = (b"", b'"type":"REQUEST", ', b'"type":"RESPONSE", ')

_to_json = _json.JSONEncoder(ensure_ascii=False, separators=(", ", ":"), check_circular=False).encode


cdef bytes new_id():
    """A UUID of version 4 in text (RFC 9562 §5.4)."""
    global _pool, _pool_at
    cdef bytes result
    cdef char* at
    cdef const uint8_t* source
    cdef int i
    cdef uint8_t byte
    if _pool_at == 16 * ID_POOL:
        _pool = os.urandom(16 * ID_POOL)
        _pool_at = 0
    source = <const uint8_t*>PyBytes_AS_STRING(_pool) + _pool_at
    _pool_at += 16
    result = PyBytes_FromStringAndSize(NULL, SEED_ID_SIZE)
    at = PyBytes_AS_STRING(result)
    for i in range(16):
        byte = source[i]
        if i == 6:
            byte = byte & 0x0f | 0x40
        elif i == 8:
            byte = byte & 0x3f | 0x80
        if i == 4 or i == 6 or i == 8 or i == 10:
            at[0] = c'-'
            at += 1
        at[0] = b"0123456789abcdef"[byte >> 4]
        at[1] = b"0123456789abcdef"[byte & 15]
        at += 2
    return result

cdef bytes _pool = b""
cdef Py_ssize_t _pool_at = 16 * ID_POOL


cdef class _Fields:
    """The fields of a head as the wire has them: those that travel, values in UTF-8, those of one name together."""
    cdef:
        FieldArray array
        list kept

    cdef int take(self, const Field* fields, Py_ssize_t count, bint sized, uint64_t length) except -1:
        cdef Py_ssize_t i
        cdef Field field
        cdef bytes text
        self.array.count = 0
        self.kept = None
        for i in range(count):
            field = fields[i]
            if stays_here(field.name):
                continue
            if not is_utf8(field.value):
                text = bytes_of(field.value).decode("latin-1").encode()
                self._keep(text)
                field.value = slice_of(text)
            field.kind = 0      # not written yet
            self.array.add(field)
        if sized:
            text = b"%d" % length
            self._keep(text)
            field.name = slice_of(b"content-length")
            field.value = slice_of(text)
            field.kind = 0
            self.array.add(field)
        return 0

    def _keep(self, bytes text):
        if self.kept is None:
            self.kept = []
        self.kept.append(text)

    cdef Py_ssize_t room(self) noexcept:
        """More than the entries take, tags and lengths included."""
        cdef Py_ssize_t i, total = 0
        for i in range(self.array.count):
            total += self.array.items[i].name.size + self.array.items[i].value.size + 40
        return total

    cdef char* put(self, char* at, int number) noexcept:
        """Writes the entries of the map, member `number`."""
        cdef Field* items = self.array.items
        cdef Py_ssize_t i, j, count = self.array.count
        cdef Py_ssize_t listed, entry
        for i in range(count):
            if items[i].kind:
                continue
            listed = 0
            for j in range(i, count):
                if not items[j].kind and same(items[j].name, items[i].name):
                    items[j].kind = 1
                    listed += member_size(member_size(items[j].value.size))
            entry = member_size(items[i].name.size) + member_size(listed)
            at = put_length(at, number, entry)
            at = put_length(at, 1, items[i].name.size)
            write_canonical(at, items[i].name)
            at += items[i].name.size
            at = put_length(at, 2, listed)
            for j in range(i, count):
                if items[j].kind == 1:
                    items[j].kind = 2
                    at = put_length(at, 1, member_size(items[j].value.size))
                    at = put_member(at, 3, items[j].value)
        return at

    cdef dict mapping(self):
        """For JSON, sorted by name."""
        cdef dict found = {}
        cdef Py_ssize_t i
        cdef bytes name
        for i in range(self.array.count):
            name = PyBytes_FromStringAndSize(NULL, self.array.items[i].name.size)
            write_canonical(PyBytes_AS_STRING(name), self.array.items[i].name)
            found.setdefault(name.decode("ascii"), []).append(bytes_of(self.array.items[i].value).decode())
        return dict(sorted(found.items()))


cdef _Fields _fields = _Fields()
_fields.array = FieldArray()
cdef Buffer _scratch = Buffer()


cdef object start_request(bint json, const RequestHead* head):
    """The start of an EventHTTPRequest, without its body."""
    cdef Slice path = head.target, query
    cdef const char* mark = <const char*>memchr(path.ptr, c'?', path.size)
    cdef bytes decoded
    cdef char* at
    cdef dict event
    query.size = 0
    if mark != NULL:
        query.ptr = mark + 1
        query.size = path.size - (mark - path.ptr) - 1
        path.size = mark - path.ptr
    decoded = raw_path(path)
    if decoded is not None:
        path = slice_of(decoded)
    _fields.take(head.fields, head.field_count, head.body == BODY_SIZED, head.length)
    if json:
        event = {"method": bytes_of(head.method).decode("ascii"), "rawPath": bytes_of(path).decode()}
        if query.size:
            event["rawQuery"] = bytes_of(query).decode("ascii")
        if _fields.array.count:
            event["headers"] = _fields.mapping()
        return _to_json(event).encode()[:-1]
    _scratch.size = 0
    at = reserve(_scratch, head.method.size + path.size + query.size + 40 + _fields.room())
    at = put_member(at, 1, head.method)
    at = put_member(at, 2, path)
    if query.size:
        at = put_member(at, 3, query)
    at = _fields.put(at, 4)
    return _written(at)


cdef object start_response(bint json, const ResponseHead* head):
    """The start of an EventHTTPResponse, without its body."""
    cdef char* at
    cdef dict event
    _fields.take(head.fields, head.field_count, head.body == BODY_SIZED and head.status != 204, head.length)
    if json:
        event = {"statusCode": head.status}
        if _fields.array.count:
            event["headers"] = _fields.mapping()
        return _to_json(event).encode()[:-1]
    _scratch.size = 0
    at = reserve(_scratch, 16 + _fields.room())
    at[0] = 1 << 3 | VARINT
    at = put_varint(at + 1, head.status)
    at = _fields.put(at, 2)
    return _written(at)


cdef bytes _written(char* end):
    cdef bytes result = PyBytes_FromStringAndSize(_scratch.data, end - _scratch.data)
    if _scratch.capacity > 65536:
        _scratch.release()
    return result


cdef Py_ssize_t message_size(bint json, object start, Py_ssize_t body_size) except -1:
    cdef Py_ssize_t event = len(<bytes>start)
    if json:
        event += 14 + (body_size + 2) // 3 * 4
        return (event + 2) // 3 * 4 + MAX_ID_SIZE + 64
    return event + body_size + MAX_ID_SIZE + 40


cdef bytes finish_message(bint json, bytes message_id, SeedType kind, object start, list body, Py_ssize_t body_size):
    cdef bytes event = start
    cdef bytes result
    cdef Py_ssize_t size = len(event)
    cdef Py_ssize_t total, length
    cdef char* at
    cdef int number = 5 if kind == SEED_REQUEST else 3
    if json:
        if body_size:
            event += b', "body":"' + binascii.b2a_base64(b"".join(body), newline=False) + b'"'
        return pack_message(True, message_id, kind, event + b"}")
    if body_size:
        size += member_size(body_size)
    length = len(message_id)
    total = (member_size(length) if length else 0) + 2 + 1 + varint_size(size) + size - body_size
    result = PyBytes_FromStringAndSize(NULL, total)
    at = PyBytes_AS_STRING(result)
    if length:
        at = put_member(at, 1, slice_of(message_id))
    at[0] = 2 << 3 | VARINT
    at[1] = <char>kind
    at = put_length(at + 2, 3, size)
    memcpy(at, PyBytes_AS_STRING(event), len(event))
    if body_size:
        put_length(at + len(event), number, body_size)
    return result


cdef bytes pack_message(bint json, bytes message_id, SeedType kind, bytes data):
    cdef bytes result
    cdef char* at
    cdef Py_ssize_t size
    if json:
        result = b'"id":%b, ' % _to_json(message_id.decode()).encode() if message_id else b""
        result += TYPE_NAMES[kind]
        if data:
            result += b'"data":"%b", ' % binascii.b2a_base64(data, newline=False)
        return b"{%b}" % result[:-2]
    size = (member_size(len(message_id)) if message_id else 0) + (2 if kind else 0) + (
        member_size(len(data)) if data else 0)
    result = PyBytes_FromStringAndSize(NULL, size)
    at = PyBytes_AS_STRING(result)
    if message_id:
        at = put_member(at, 1, slice_of(message_id))
    if kind:
        at[0] = 2 << 3 | VARINT
        at[1] = <char>kind
        at += 2
    if data:
        put_member(at, 3, slice_of(data))
    return result


# --- for Python callers ------------------------------------------------------------------------------------------

cdef tuple _pairs(SeedReader reader):
    return pairs_of(reader.fields.items, reader.fields.count)


def make_id() -> bytes:
    """A new message's id."""
    return new_id()


def unpack(bytes message, bint json=False) -> tuple:
    """A message as (id, type, data). Raises HeadError."""
    cdef SeedReader reader = SeedReader()
    reader.message(json, message, len(message))
    return (bytes_of(reader.id) if reader.id.size else b"", reader.type,
            bytes_of(reader.data) if reader.data.size else b"")


def unpack_request(bytes data, bint json=False) -> tuple:
    """An EventHTTPRequest as (method, target, fields, Content-Length or -1, body). Raises HeadError."""
    cdef SeedReader reader = SeedReader()
    reader.data = slice_of(data)
    reader.request(json)
    return (bytes_of(reader.method), bytes_of(reader.target), _pairs(reader), reader.declared_length,
            bytes_of(reader.body) if reader.body.size else b"")


def unpack_response(bytes data, bint json=False) -> tuple:
    """An EventHTTPResponse as (status, fields, Content-Length or -1, body). Raises HeadError."""
    cdef SeedReader reader = SeedReader()
    reader.data = slice_of(data)
    reader.response(json)
    return (reader.status, _pairs(reader), reader.declared_length,
            bytes_of(reader.body) if reader.body.size else b"")


def pack_request(bytes message_id, head, bytes body=b"", bint json=False) -> bytes:
    """A REQUEST message for a `RequestHead` and a whole body."""
    cdef RequestHead raw
    cdef FieldArray fields = FieldArray()
    fill_request(head, &raw, fields)
    return _whole(json, message_id, SEED_REQUEST, start_request(json, &raw), body)


def pack_response(bytes message_id, head, bytes body=b"", bint json=False) -> bytes:
    """A RESPONSE message for a `ResponseHead` and a whole body."""
    cdef ResponseHead raw
    cdef FieldArray fields = FieldArray()
    fill_response(head, &raw, fields)
    return _whole(json, message_id, SEED_RESPONSE, start_response(json, &raw), body)


cdef bytes _whole(bint json, bytes message_id, SeedType kind, object start, bytes body):
    cdef bytes message = finish_message(json, message_id, kind, start, [body], len(body))
    return message if json else message + body


def pack(bytes message_id, int kind, bytes data, bint json=False) -> bytes:
    """A message around an event that is packed already."""
    return pack_message(json, message_id, <SeedType>kind, data)


def pack_event(head, bytes body=b"", bint json=False) -> bytes:
    """An EventHTTPRequest for a `RequestHead` and a whole body: what a NOTIFY carries that runs a service."""
    return unpack(pack_request(b"", head, body, json), json)[2]
