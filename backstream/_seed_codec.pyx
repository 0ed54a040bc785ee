"""The seed wire's messages, to and from bytes (docs/reference/protocol.md): binary protobuf, or protojson in text.

Rules that hold here: nothing is read outside the slice that was handed in; whatever can't be read, or is no HTTP,
raises HeadError, which costs that one message; what is written is canonical: members in order, defaults left out,
names of fields as Go writes them, grouped, and in JSON sorted. Bytes that are no UTF-8 are written as if they were
Latin-1, since the wire has text only.
"""

import binascii
import json as _json
import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset

from backstream._buffer cimport Buffer, reserve
from backstream._codec cimport BODY_SIZED, MAX_HEAD_SIZE, Field, FieldArray, RequestHead, ResponseHead
from backstream._grammar cimport is_connection_field, is_field_value, is_token
from backstream._message_codec cimport fill_request, fill_response
from backstream._protobuf cimport (
    BYTES, VARINT, Cursor, cursor_of, member_size, put_length, put_member, put_varint, read_bytes, read_tag,
    read_varint, skip_member, varint_size,
)
from backstream._slice cimport Slice, bytes_of, equals, slice_of

from backstream.errors import HeadError


cdef enum:
    MAX_FIELDS = 1000
    MAX_ID_SIZE = 128
    MAX_VALUES = 2 * MAX_HEAD_SIZE + 16384  # of a document: the commas and brackets of a path and fields at their limit
    ID_POOL = 256                   # ids made of one call to the system

cdef Slice NOTHING
NOTHING.ptr = NULL
NOTHING.size = 0

TYPES = {"NOTIFY": SEED_NOTIFY, "REQUEST": SEED_REQUEST, "RESPONSE": SEED_RESPONSE}
TYPE_NAMES = (b"", b'"type":"REQUEST", ', b'"type":"RESPONSE", ')

_to_json = _json.JSONEncoder(ensure_ascii=False, separators=(", ", ":"), check_circular=False).encode


cdef int _malformed(str what) except -1:
    raise HeadError(f"malformed message: {what}")


# --- characters --------------------------------------------------------------------------------------------------

# Bytes that Go's net/url leaves alone in a path, and those that may stand in a target of ours (less "%" and "?").
cdef bint GO_PLAIN[256]
cdef bint PATH_PLAIN[256]
cdef bint QUERY_PLAIN[256]
cdef uint8_t LOWER[256]
cdef int HEX_VALUE[256]
cdef const char* HEX_DIGITS = b"0123456789ABCDEF"

cdef void _fill_tables() noexcept:
    cdef int c
    memset(GO_PLAIN, 0, sizeof(GO_PLAIN))
    for c in range(256):
        LOWER[c] = c + 32 if c'A' <= c <= c'Z' else c
        HEX_VALUE[c] = (c - c'0' if c'0' <= c <= c'9' else c - c'A' + 10 if c'A' <= c <= c'F'
                        else c - c'a' + 10 if c'a' <= c <= c'f' else -1)
        GO_PLAIN[c] = c'0' <= c <= c'9' or c'A' <= c <= c'Z' or c'a' <= c <= c'z'
        QUERY_PLAIN[c] = 0x21 <= c <= 0x7e and c != c'#'
        PATH_PLAIN[c] = QUERY_PLAIN[c] and c != c'?' and c != c'%'
    for c in b"-_.~$&+,/:;=@":
        GO_PLAIN[c] = True
    for c in b"\"<>\\^`{|}":
        PATH_PLAIN[c] = False

_fill_tables()


cdef bint _is_ascii(Slice s) noexcept:
    cdef Py_ssize_t i = 0
    cdef uint64_t word
    while i + 8 <= s.size:
        memcpy(&word, s.ptr + i, 8)
        if word & <uint64_t>0x8080808080808080u:
            return False
        i += 8
    while i < s.size:
        if <uint8_t>s.ptr[i] & 0x80:
            return False
        i += 1
    return True


cdef bint _is_utf8(Slice s) except -1:
    if _is_ascii(s):
        return True
    try:
        PyUnicode_DecodeUTF8(s.ptr, s.size, NULL)
    except UnicodeDecodeError:
        return False
    return True


cdef void _trim(Slice* s) noexcept:
    while s.size and (s.ptr[0] == c' ' or s.ptr[0] == c'\t'):
        s.ptr += 1
        s.size -= 1
    while s.size and (s.ptr[s.size - 1] == c' ' or s.ptr[s.size - 1] == c'\t'):
        s.size -= 1


cdef inline bint _same(Slice a, Slice b) noexcept:
    return a.size == b.size and memcmp(a.ptr, b.ptr, a.size) == 0


cdef inline void _canonical(char* at, Slice name) noexcept:
    """A field's name as Go's net/textproto writes it: `X-Mixed`."""
    cdef Py_ssize_t i
    cdef bint upper = True
    cdef uint8_t c
    for i in range(name.size):
        c = LOWER[<uint8_t>name.ptr[i]]
        if upper and c'a' <= c <= c'z':
            c -= 32
        at[i] = <char>c
        upper = c == c'-'


cdef bint _stays_here(Slice name) noexcept:
    """Fields that mean this hop or what the wire can't carry: trailers, 100-continue."""
    if name.size == 2:
        return memcmp(name.ptr, b"te", 2) == 0
    if name.size == 6:
        return memcmp(name.ptr, b"expect", 6) == 0
    if name.size == 7 and memcmp(name.ptr, b"trailer", 7) == 0:
        return True
    return is_connection_field(name)


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


# --- reading -----------------------------------------------------------------------------------------------------

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
                    fine = kind == BYTES and read_bytes(&c, &self.id) and _is_utf8(self.id)
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
                    fine = kind == BYTES and read_bytes(&c, &part) and (number > 3 or _is_utf8(part))
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
                fine = kind == BYTES and read_bytes(&c, &key) and _is_utf8(key)
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
            if _same(self.fields.items[i].name, key):
                self._drop_before(first, key)
                break
        return 0

    cdef void _drop_before(self, Py_ssize_t first, Slice key) noexcept:
        cdef Py_ssize_t i, count = 0
        for i in range(self.fields.count):
            if i >= first or not _same(self.fields.items[i].name, key):
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
                        fine = kind == BYTES and read_bytes(&v, &text) and _is_utf8(text)
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
        _trim(&value)
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
        cdef Py_ssize_t i, j, count = 0
        cdef char* at
        cdef Field field
        for i in range(self.fields.count):
            field = self.fields.items[i]
            if not is_field_value(field.value):
                _malformed("a field's value has a control character")
            at = self._text.data + self._text.size
            for j in range(field.name.size):
                at[j] = <char>LOWER[<uint8_t>field.name.ptr[j]]
            field.name.ptr = at
            if field.name.size == 14 and memcmp(at, b"content-length", 14) == 0:
                self.declared_length = _length(field.value)
            if _stays_here(field.name):
                continue
            if field.name.size == 28 and memcmp(at, b"x-backstream-request-timeout", 28) == 0:
                self.timeout = field.value
            self._text.size += field.name.size
            self.fields.items[count] = field
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
        at = _escape(at, path, PATH_PLAIN)
        if query.size:
            at[0] = c'?'
            at = _escape(at + 1, query, QUERY_PLAIN)
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


cdef char* _escape(char* at, Slice text, const bint* plain) noexcept:
    cdef Py_ssize_t i
    cdef uint8_t c
    for i in range(text.size):
        c = <uint8_t>text.ptr[i]
        if plain[c] or (c == c'%' and i + 2 < text.size and HEX_VALUE[<uint8_t>text.ptr[i + 1]] >= 0
                        and HEX_VALUE[<uint8_t>text.ptr[i + 2]] >= 0):
            at[0] = <char>c
            at += 1
        else:
            at[0] = c'%'
            at[1] = HEX_DIGITS[c >> 4]
            at[2] = HEX_DIGITS[c & 15]
            at += 3
    return at


# --- writing -----------------------------------------------------------------------------------------------------

cdef bytes _raw_path(Slice path):
    """The decoded path where Go's encoding would give `path` back, else None: it travels as it is.

    None too where what was decoded reads like an escape: its receiver, who leaves those alone, would serve another
    path than the one that was asked for (`/%252e` as `/%2e`).
    """
    cdef bytes decoded
    cdef char* at
    cdef Py_ssize_t i = 0
    cdef int high, low
    cdef uint8_t c
    cdef Slice text
    if memchr(path.ptr, c'%', path.size) == NULL:
        return None
    decoded = PyBytes_FromStringAndSize(NULL, path.size)
    text.ptr = at = PyBytes_AS_STRING(decoded)
    while i < path.size:
        c = <uint8_t>path.ptr[i]
        if c == c'%':
            if i + 2 >= path.size:
                return None
            high = HEX_VALUE[<uint8_t>path.ptr[i + 1]]
            low = HEX_VALUE[<uint8_t>path.ptr[i + 2]]
            if high < 0 or low < 0 or path.ptr[i + 1] >= c'a' or path.ptr[i + 2] >= c'a':
                return None
            c = <uint8_t>(high << 4 | low)
            if GO_PLAIN[c]:
                return None
            i += 2
        elif not GO_PLAIN[c]:
            return None
        at[0] = <char>c
        at += 1
        i += 1
    text.size = at - text.ptr
    for i in range(text.size - 2):
        if (text.ptr[i] == c'%' and HEX_VALUE[<uint8_t>text.ptr[i + 1]] >= 0
                and HEX_VALUE[<uint8_t>text.ptr[i + 2]] >= 0):
            return None
    return bytes_of(text) if _is_utf8(text) else None


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
            if _stays_here(field.name):
                continue
            if not _is_utf8(field.value):
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
                if not items[j].kind and _same(items[j].name, items[i].name):
                    items[j].kind = 1
                    listed += member_size(member_size(items[j].value.size))
            entry = member_size(items[i].name.size) + member_size(listed)
            at = put_length(at, number, entry)
            at = put_length(at, 1, items[i].name.size)
            _canonical(at, items[i].name)
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
            _canonical(PyBytes_AS_STRING(name), self.array.items[i].name)
            found.setdefault(name.decode("ascii"), []).append(bytes_of(self.array.items[i].value).decode())
        return dict(sorted(found.items()))


cdef _Fields _fields = _Fields()
_fields.array = FieldArray()
cdef Buffer _scratch = Buffer()


cdef object start_request(bint json, const RequestHead* head):
    """The start of an EventHTTPRequest, without its body."""
    cdef Slice path = head.target, query = NOTHING
    cdef const char* mark = <const char*>memchr(path.ptr, c'?', path.size)
    cdef bytes decoded
    cdef char* at
    cdef dict event
    if mark != NULL:
        query.ptr = mark + 1
        query.size = path.size - (mark - path.ptr) - 1
        path.size = mark - path.ptr
    decoded = _raw_path(path)
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
    cdef Py_ssize_t i
    return tuple([(bytes_of(reader.fields.items[i].name), bytes_of(reader.fields.items[i].value))
                  for i in range(reader.fields.count)])


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
