"""The seed wire's messages from bytes (docs/reference/protocol.md): binary protobuf, or protojson in text.

Rules that hold here: nothing is read outside the slice that was handed in; whatever can't be read, or is no HTTP,
raises HeadError, which costs that one message.
"""

import binascii
import json as _json

from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp

from backstream._buffer cimport Buffer, reserve
from backstream._codec cimport MAX_HEAD_SIZE, Field, FieldArray
from backstream._grammar cimport is_field_value, is_token, nominated_by
from backstream._protobuf cimport BYTES, VARINT, Cursor, cursor_of, read_bytes, read_tag, read_varint, skip_member
from backstream._seed_text cimport (
    escape_path, escape_query, is_utf8, same, stays_here, write_lower,
)
from backstream._slice cimport Slice, bytes_of, equals, slice_of, trim

from backstream.errors import HeadError


cdef enum:
    MAX_FIELDS = 1000
    MAX_VALUES = 2 * MAX_HEAD_SIZE + 16384  # of a document: the commas and brackets of a path and fields at their limit

cdef Slice NOTHING
NOTHING.ptr = NULL
NOTHING.size = 0

TYPES = {"NOTIFY": SEED_NOTIFY, "REQUEST": SEED_REQUEST, "RESPONSE": SEED_RESPONSE}


cdef int _malformed(str what) except -1:
    raise HeadError(f"malformed message: {what}")


cdef Slice id_at_start(bint json, const char* data, Py_ssize_t size) noexcept:
    """The id of a message of which only the start is at hand; empty where it does not stand there."""
    cdef Slice found = NOTHING
    cdef const char* end
    if json:
        if size > 7 and memcmp(data, b'{"id":"', 7) == 0:
            end = <const char*>memchr(data + 7, c'"', size - 7)
            if end != NULL:
                found.ptr = data + 7
                found.size = end - found.ptr
    elif size > 2 and data[0] == 0x0a and 0 < data[1] <= size - 2:
        found.ptr = data + 2
        found.size = data[1]
    return found


cdef dict _unique(pairs):
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name that repeats")
    return found


def _object(list pairs):
    return _unique(pairs)


def _no_constant(name):
    raise ValueError(f"{name} is no JSON")


_from_json = _json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant).decode


cdef dict _document(const char* data, Py_ssize_t size):
    cdef object found
    cdef Py_ssize_t i, values = 0
    if size > MAX_VALUES:
        # Objects for millions of values in a message would take many times its size.
        for i in range(size):
            values += data[i] == c',' or data[i] == c'[' or data[i] == c'{'
        if values > MAX_VALUES:
            _malformed("too many values")
    try:
        found = _from_json(PyUnicode_DecodeUTF8(data, size, NULL))
    except (ValueError, RecursionError):
        _malformed("no JSON")
    if type(found) is not dict:
        _malformed("no JSON object")
    return found


cdef bytes _base64(object value):
    """What protojson takes for bytes: standard or URL-safe base64, padded or not."""
    cdef str text
    if value is None:
        return b""
    if type(value) is not str:
        _malformed("bytes that are no string")
    text = value
    if "-" in text or "_" in text:
        text = text.replace("-", "+").replace("_", "/")
    if len(text) % 4:
        text += "=" * (4 - len(text) % 4)
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        _malformed("no base64")


cdef object _integer(object value):
    if type(value) is float and value.is_integer():
        return int(value)
    if type(value) is str and value.removeprefix("-").isdecimal() and value.isascii() and len(value) < 12:
        return int(value)
    if type(value) is not int:
        _malformed("no number")
    return value


cdef class SeedReader:

    def __cinit__(self):
        self.fields = FieldArray()
        self._text = Buffer()

    cdef int message(self, bint json, const char* data, Py_ssize_t size) except -1:
        """Reads a message; its event is in `data` still. Raises HeadError."""
        cdef Cursor c
        cdef uint32_t number = 0
        cdef int kind = 0
        cdef uint64_t wide = 0
        cdef bint fine
        self._kept = None
        self.id = self.data = NOTHING
        self.type = SEED_NOTIFY
        if json:
            self._json_message(data, size)
        else:
            c.at = <const uint8_t*>data
            c.end = c.at + size
            while c.at < c.end:
                fine = read_tag(&c, &number, &kind)
                if not fine:
                    pass
                elif number == 1:
                    fine = kind == BYTES and read_bytes(&c, &self.id) and is_utf8(self.id)
                elif number == 2:
                    fine = kind == VARINT and read_varint(&c, &wide)
                    self.type = <uint32_t>wide if wide <= 0xffffffffu else 0xffffffffu
                elif number == 3:
                    fine = kind == BYTES and read_bytes(&c, &self.data)
                else:
                    fine = skip_member(&c, kind)
                if not fine:
                    _malformed("no protobuf")
        if self.id.size > MAX_ID_SIZE:
            _malformed("an id of more than 128 bytes")
        if self.type > SEED_RESPONSE:
            _malformed("an unknown type")
        return 0

    cdef int forget(self) except -1:
        """What was read last is of no use any more."""
        self._kept = None
        self.id = self.data = self.method = self.target = self.body = self.timeout = NOTHING
        self.fields.count = 0
        return 0

    cdef int _json_message(self, const char* data, Py_ssize_t size) except -1:
        cdef dict found = _document(data, size)
        cdef object kind = found.get("type")
        cdef bytes event
        if kind is not None:
            number = TYPES.get(kind) if type(kind) is str else _integer(kind)
            if number is None or not 0 <= number <= SEED_RESPONSE:
                _malformed("an unknown type")
            self.type = number
        self.id = self._json_text(found, "id")
        event = _base64(found.get("data"))
        self._keep(event)
        self.data = slice_of(event)
        return 0

    def _keep(self, bytes value):
        if self._kept is None:
            self._kept = []
        self._kept.append(value)

    cdef Slice _json_text(self, dict event, str name) except *:
        cdef object value = event.get(name)
        cdef bytes text
        if value is None:
            return NOTHING
        if type(value) is not str:
            _malformed(f"{name} is no string")
        try:
            text = (<str>value).encode()
        except UnicodeEncodeError:
            _malformed("half a surrogate pair")
        self._keep(text)
        return slice_of(text)

    cdef int _begin_event(self) except -1:
        self.fields.count = self._entries = 0
        self._text.size = 0
        if self._text.capacity > 8192:
            self._text.release()
        self.method = self.target = self.body = self.timeout = NOTHING
        self.status = 0
        self.declared_length = -1
        return 0

    cdef int request(self, bint json) except -1:
        """Reads the message's data as a request. Raises HeadError."""
        cdef Cursor c
        cdef uint32_t number = 0
        cdef int kind = 0
        cdef bint fine
        cdef Slice part, path = NOTHING, query = NOTHING
        cdef dict event
        self._begin_event()
        if json:
            event = _document(self.data.ptr, self.data.size) if self.data.size else {}
            self.method = self._json_text(event, "method")
            path = self._json_text(event, "rawPath")
            query = self._json_text(event, "rawQuery")
            self._json_fields(event)
            self._json_body(event)
        else:
            c = cursor_of(self.data)
            while c.at < c.end:
                fine = read_tag(&c, &number, &kind)
                if not fine:
                    pass
                elif 1 <= number <= 5:
                    fine = kind == BYTES and read_bytes(&c, &part) and (number > 3 or is_utf8(part))
                    if not fine:
                        pass
                    elif number == 1:
                        self.method = part
                    elif number == 2:
                        path = part
                    elif number == 3:
                        query = part
                    elif number == 4:
                        self._entry(part)
                    else:
                        self.body = part
                else:
                    fine = skip_member(&c, kind)
                if not fine:
                    _malformed("no protobuf")
        if not is_token(self.method) or equals(self.method, b"CONNECT", 7):
            _malformed("the method")
        if self.method.size + path.size + query.size > MAX_HEAD_SIZE:
            _malformed("a method and path of more than 131072 bytes")
        reserve(self._text, 3 * (path.size + query.size) + 2 + self._names_size())
        self._make_target(path, query)
        return self._finish_fields()

    cdef int response(self, bint json) except -1:
        """Reads the message's data as a response; status 0 where it is empty. Raises HeadError."""
        cdef Cursor c
        cdef uint32_t number = 0
        cdef int kind = 0
        cdef bint fine
        cdef uint64_t wide = 0
        cdef Slice part
        cdef dict event
        cdef object status
        self._begin_event()
        if json:
            event = _document(self.data.ptr, self.data.size) if self.data.size else {}
            status = event.get("statusCode")
            if status is not None:
                status = _integer(status)
                self.status = status if 0 <= status <= 999 else 1000
            self._json_fields(event)
            self._json_body(event)
        else:
            c = cursor_of(self.data)
            while c.at < c.end:
                fine = read_tag(&c, &number, &kind)
                if not fine:
                    pass
                elif number == 1:
                    fine = kind == VARINT and read_varint(&c, &wide)
                    self.status = <uint32_t>wide if wide <= 999 else 1000
                elif number == 2 or number == 3:
                    fine = kind == BYTES and read_bytes(&c, &part)
                    if fine and number == 2:
                        self._entry(part)
                    elif fine:
                        self.body = part
                else:
                    fine = skip_member(&c, kind)
                if not fine:
                    _malformed("no protobuf")
        reserve(self._text, self._names_size() + 1)
        return self._finish_fields()

    cdef int _json_body(self, dict event) except -1:
        cdef bytes body = _base64(event.get("body"))
        self._keep(body)
        self.body = slice_of(body)
        return 0

    cdef int _json_fields(self, dict event) except -1:
        cdef object headers = event.get("headers")
        cdef bytes name, value
        if headers is None:
            return 0
        if type(headers) is not dict:
            _malformed("headers that are no object")
        for key, values in (<dict>headers).items():
            if type(values) is not list:
                _malformed("a field whose values are no list")
            try:
                name = (<str>key).encode()
                if not is_token(slice_of(name)):
                    _malformed("a field's name is no token")
                self._keep(name)
                for each in <list>values:
                    if type(each) is not str:
                        _malformed("a field's value that is no string")
                    value = (<str>each).encode()
                    self._keep(value)
                    self._add(slice_of(name), slice_of(value))
            except UnicodeEncodeError:
                _malformed("half a surrogate pair")
        return 0

    cdef int _entry(self, Slice entry) except -1:
        """One entry of the map `headers`; of two with the same key the last one holds, as in every map of protobuf."""
        cdef Cursor c = cursor_of(entry)
        cdef uint32_t number = 0
        cdef int kind = 0
        cdef bint fine
        cdef Slice part, key = NOTHING
        cdef Py_ssize_t i, first = self.fields.count
        self._entries += 1
        if self._entries > MAX_FIELDS:
            # Those without a value as well: each is held against all fields before it.
            _malformed("more than 1000 fields")
        while c.at < c.end:
            fine = read_tag(&c, &number, &kind)
            if not fine:
                pass
            elif number == 1:
                fine = kind == BYTES and read_bytes(&c, &key) and is_utf8(key)
            elif number == 2:
                fine = kind == BYTES and read_bytes(&c, &part)
                if fine:
                    self._values(key, part)
            else:
                fine = skip_member(&c, kind)
            if not fine:
                _malformed("no protobuf")
        if not is_token(key):
            _malformed("a field's name is no token")
        for i in range(first, self.fields.count):
            self.fields.items[i].name = key
        for i in range(first):
            if same(self.fields.items[i].name, key):
                self._drop_before(first, key)
                break
        return 0

    cdef void _drop_before(self, Py_ssize_t first, Slice key) noexcept:
        cdef Py_ssize_t i, count = 0
        for i in range(self.fields.count):
            if i >= first or not same(self.fields.items[i].name, key):
                self.fields.items[count] = self.fields.items[i]
                count += 1
        self.fields.count = count

    cdef int _values(self, Slice key, Slice listed) except -1:
        """A google.protobuf.ListValue of strings."""
        cdef Cursor c = cursor_of(listed)
        cdef Cursor v
        cdef uint32_t number = 0
        cdef int kind = 0
        cdef bint fine
        cdef Slice part, text
        cdef uint32_t chosen
        while c.at < c.end:
            fine = read_tag(&c, &number, &kind)
            if fine and number != 1:
                fine = skip_member(&c, kind)
            elif fine:
                fine = kind == BYTES and read_bytes(&c, &part)
                text = NOTHING
                chosen = 0
                v = cursor_of(part)
                while fine and v.at < v.end:
                    fine = read_tag(&v, &number, &kind)
                    if fine and number == 3:
                        fine = kind == BYTES and read_bytes(&v, &text) and is_utf8(text)
                        chosen = 3
                    elif fine:
                        fine = skip_member(&v, kind)
                        if number <= 6:
                            chosen = number
                if fine and chosen != 3:
                    _malformed("a field's value that is no string")
                if fine:
                    self._add(key, text)
            if not fine:
                _malformed("no protobuf")
        return 0

    cdef int _add(self, Slice name, Slice value) except -1:
        cdef Field field
        if self.fields.count >= MAX_FIELDS:
            _malformed("more than 1000 fields")
        trim(&value)
        field.name = name
        field.value = value
        field.kind = 0
        return self.fields.add(field)

    cdef Py_ssize_t _names_size(self) except -1:
        cdef Py_ssize_t i, names = 0, values = 0
        for i in range(self.fields.count):
            names += self.fields.items[i].name.size
            values += self.fields.items[i].value.size
        if names + values > MAX_HEAD_SIZE:
            _malformed("fields of more than 131072 bytes")
        return names

    cdef int _finish_fields(self) except -1:
        """Names in lower case (there is room in `_text`), and only the fields that travel on."""
        cdef Py_ssize_t i, count = 0
        cdef char* at
        cdef Field field
        cdef list connections = None
        for i in range(self.fields.count):
            field = self.fields.items[i]
            if not is_field_value(field.value):
                _malformed("a field's value has a control character")
            at = self._text.data + self._text.size
            write_lower(at, field.name)
            field.name.ptr = at
            if field.name.size == 14 and memcmp(at, b"content-length", 14) == 0:
                self.declared_length = _length(field.value)
            if stays_here(field.name):
                if field.name.size == 10 and memcmp(at, b"connection", 10) == 0:
                    if connections is None:
                        connections = []
                    connections.append(bytes_of(field.value))
                continue
            if field.name.size == 28 and memcmp(at, b"x-backstream-request-timeout", 28) == 0:
                self.timeout = field.value
            self._text.size += field.name.size
            self.fields.items[count] = field
            count += 1
        self.fields.count = count
        return 0 if connections is None else self._drop_nominated(nominated_by(b",".join(connections)))

    cdef int _drop_nominated(self, frozenset names) except -1:
        cdef Py_ssize_t i, count = 0
        for i in range(self.fields.count):
            if bytes_of(self.fields.items[i].name) not in names:
                self.fields.items[count] = self.fields.items[i]
                count += 1
        self.fields.count = count
        return 0

    cdef int _make_target(self, Slice path, Slice query) except -1:
        """The target of the two: what may not stand in it is escaped, and valid escapes are left alone."""
        cdef char* start = self._text.data + self._text.size
        cdef char* at = start
        if path.size == 1 and path.ptr[0] == c'*' and query.size == 0 and equals(self.method, b"OPTIONS", 7):
            self.target = slice_of(b"*")
            return 0
        if path.size == 0 or path.ptr[0] != c'/':
            at[0] = c'/'
            at += 1
        at = escape_path(at, path)
        if query.size:
            at[0] = c'?'
            at = escape_query(at + 1, query)
        self.target.ptr = start
        self.target.size = at - start
        self._text.size += at - start
        return 0


cdef int64_t _length(Slice value) noexcept:
    cdef int64_t result = 0
    cdef Py_ssize_t i
    if value.size == 0 or value.size > 18:
        return -1
    for i in range(value.size):
        if not c'0' <= value.ptr[i] <= c'9':
            return -1
        result = result * 10 + value.ptr[i] - c'0'
    return result
