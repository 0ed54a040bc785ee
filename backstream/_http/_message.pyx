"""Reading HTTP/1.1 messages strictly (RFC 9112): heads, framing, bodies, trailers; requests and responses.

Rules that hold here:
- llhttp (httptools) sees every byte and has the last word on syntax. It is handed one message at a time: where a
  message ends is computed here as well, and where the two disagree the message is refused. So nothing of a next
  message is ever taken for this one, and nothing is parsed before its turn.
- A head is judged whole: it is gathered (under a limit) until its blank line came.
- Framing fields are judged here, before anything goes further. What is ambiguous is an error, never a guess.

Errors are MessageError with the status that they become.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memchr, memcmp

from backstream._buffer cimport Buffer, append
from backstream._codec cimport BODY_CHUNKED, BODY_NONE, BODY_SIZED, Field, FieldArray
from backstream._grammar cimport equals_lower, is_field_value, is_token, make_lower_token, nominated_by
from backstream._slice cimport Slice, bytes_of, equals, slice_of, trim

from httptools import (
    HttpParserError, HttpParserInvalidMethodError, HttpParserUpgrade, HttpRequestParser, HttpResponseParser,
)

from backstream._http.errors import MessageError


cdef FieldKind kind_of(Slice name) noexcept:
    """What HTTP's rules make of a field, by its name in lower case."""
    if name.size == 2:
        if memcmp(name.ptr, b"te", 2) == 0:
            return FIELD_TE
    elif name.size == 3:
        if memcmp(name.ptr, b"via", 3) == 0:
            return FIELD_VIA
    elif name.size == 4:
        if memcmp(name.ptr, b"host", 4) == 0:
            return FIELD_HOST
        if memcmp(name.ptr, b"date", 4) == 0:
            return FIELD_DATE
    elif name.size == 6:
        if memcmp(name.ptr, b"expect", 6) == 0:
            return FIELD_EXPECT
    elif name.size == 7:
        if memcmp(name.ptr, b"upgrade", 7) == 0:
            return FIELD_UPGRADE
        if memcmp(name.ptr, b"trailer", 7) == 0:
            return FIELD_TRAILER
    elif name.ptr[0] == c'x' and name.size > 8 and (name.ptr[1] == c'-' or name.ptr[1] == c'_'):
        return _kind_of_x(name)
    elif name.size == 9:
        if memcmp(name.ptr, b"forwarded", 9) == 0:
            return FIELD_FORWARDED
    elif name.size == 10:
        if memcmp(name.ptr, b"connection", 10) == 0:
            return FIELD_CONNECTION
        if memcmp(name.ptr, b"keep-alive", 10) == 0:
            return FIELD_KEEP_ALIVE
    elif name.size == 12:
        if memcmp(name.ptr, b"max-forwards", 12) == 0:
            return FIELD_MAX_FORWARDS
    elif name.size == 14:
        if memcmp(name.ptr, b"content-length", 14) == 0:
            return FIELD_CONTENT_LENGTH
    elif name.size == 16:
        if memcmp(name.ptr, b"proxy-connection", 16) == 0:
            return FIELD_PROXY_CONNECTION
    elif name.size == 17:
        if memcmp(name.ptr, b"transfer-encoding", 17) == 0:
            return FIELD_TRANSFER_ENCODING
    return FIELD_OTHER


cdef FieldKind _kind_of_x(Slice name) noexcept:
    """`kind_of` for names that begin with x-. CGI's heirs take x_a_b for x-a-b: such a double of ours is FIELD_OWN."""
    cdef FieldKind kind
    if _begins(name, b"x-backstream-", 13):
        if equals(name, b"x-backstream-client-id", 22):
            return FIELD_CLIENT_ID
        if equals(name, b"x-backstream-request-timeout", 28):
            return FIELD_REQUEST_TIMEOUT
        return FIELD_OWN
    if _begins(name, b"x-forwarded-", 12):
        if name.size == 15 and _begins(name, b"x-forwarded-for", 15):
            kind = FIELD_X_FORWARDED_FOR
        elif name.size == 17 and _begins(name, b"x-forwarded-proto", 17):
            kind = FIELD_X_FORWARDED_PROTO
        elif name.size == 16 and _begins(name, b"x-forwarded-host", 16):
            kind = FIELD_X_FORWARDED_HOST
        else:
            kind = FIELD_X_FORWARDED
    elif name.size == 12 and _begins(name, b"x-request-id", 12):
        kind = FIELD_REQUEST_ID
    elif name.size == 9 and _begins(name, b"x-real-ip", 9):
        kind = FIELD_X_FORWARDED
    else:
        return FIELD_OTHER
    return FIELD_OWN if memchr(name.ptr, c'_', name.size) != NULL else kind


cdef bint _begins(Slice name, const char* text, Py_ssize_t size) noexcept:
    """Whether `name` begins with `text`, a "_" in it standing for "-" too."""
    cdef Py_ssize_t i
    if name.size < size:
        return False
    for i in range(size):
        if name.ptr[i] != text[i] and not (name.ptr[i] == c'_' and text[i] == c'-'):
            return False
    return True


cdef bint is_idempotent(Slice method) noexcept:
    """Whether a request may be sent twice, by its method (RFC 9110 §9.2.2)."""
    return (equals(method, b"GET", 3) or equals(method, b"HEAD", 4) or equals(method, b"PUT", 3)
            or equals(method, b"DELETE", 6) or equals(method, b"OPTIONS", 7) or equals(method, b"TRACE", 5))


cdef bint next_token(Slice* rest, Slice* token) noexcept:
    """Takes the next member of a comma-separated list, without blanks around it; false when there is none."""
    cdef const char* comma
    while rest.size:
        comma = <const char*>memchr(rest.ptr, c',', rest.size)
        token.ptr = rest.ptr
        if comma == NULL:
            token.size = rest.size
            rest.size = 0
        else:
            token.size = comma - rest.ptr
            rest.ptr = comma + 1
            rest.size -= token.size + 1
        trim(token)
        if token.size:
            return True
    return False


# By memchr, which looks at dozens of bytes at once: memmem costs a small request nearly a thousand instructions.
cdef char* _find_line_end(char* at, char* end) noexcept:
    """Where the first CRLF begins, NULL where there is none."""
    cdef char* lf = at
    while True:
        lf = <char*>memchr(lf, c'\n', end - lf)
        if lf == NULL or lf > at and lf[-1] == c'\r':
            return lf - 1 if lf != NULL else NULL
        lf += 1


cdef char* _find_blank_line(char* at, char* end) noexcept:
    """Where the first CRLF CRLF begins, NULL where there is none."""
    while True:
        at = _find_line_end(at, end)
        if at == NULL or end - at >= 4 and at[2] == c'\r' and at[3] == c'\n':
            return at
        at += 2


cdef bint _has_bare_line_end(const char* data, Py_ssize_t size) noexcept:
    """Whether an LF without its CR stands in a head (one at the very start is not seen)."""
    cdef const char* at = data
    cdef const char* end = data + size
    while True:
        at = <const char*>memchr(at, c'\n', end - at)
        if at == NULL:
            return False
        if at > data and (at - 1)[0] != c'\r':
            return True
        at += 1


cdef void _blank_tabs(const Slice* value) noexcept:
    """Writes spaces over the tabs behind a value: optional whitespace both, and llhttp knows only the former there."""
    cdef char* at = <char*>value.ptr + value.size
    while at[0] == c' ' or at[0] == c'\t':      # the line's end stops it
        at[0] = c' '
        at += 1


cdef bint _begins_with_token(const char* data) noexcept:
    cdef Slice first
    first.ptr = data
    first.size = 1
    return is_token(first)


cdef int _extension_state(int state, const char* at) noexcept:
    """The state behind one more byte of a chunk's extensions, -1 where it may not stand (RFC 9112 §7.1.1).

    chunk-ext = *( BWS ";" BWS token [ BWS "=" BWS ( token / quoted-string ) ] ), and no blanks at the line's end.
    """
    cdef int c = <uint8_t>at[0]
    if state == EXT_QUOTED or state == EXT_QUOTED_PAIR:
        if c < 0x20 and c != c'\t' or c == 0x7f:
            return -1
        if state == EXT_QUOTED_PAIR:
            return EXT_QUOTED
        return EXT_QUOTE if c == c'"' else EXT_QUOTED_PAIR if c == c'\\' else EXT_QUOTED
    if c == c' ' or c == c'\t':
        if state == EXT_NAME or state == EXT_NAME_BLANK:
            return EXT_NAME_BLANK
        return state if state == EXT_SEMICOLON or state == EXT_EQUALS else EXT_BLANK
    if c == c';':
        return EXT_SEMICOLON if state != EXT_SEMICOLON and state != EXT_EQUALS else -1
    if c == c'=':
        return EXT_EQUALS if state == EXT_NAME or state == EXT_NAME_BLANK else -1
    if c == c'"':
        return EXT_QUOTED if state == EXT_EQUALS else -1
    if c == c'\r':
        return SIZE_LF if state == EXT_NAME or state == EXT_TOKEN or state == EXT_QUOTE else -1
    if not _begins_with_token(at):
        return -1
    if state == EXT_SEMICOLON or state == EXT_NAME:
        return EXT_NAME
    return EXT_TOKEN if state == EXT_EQUALS or state == EXT_TOKEN else -1


cdef enum:
    MAX_EMPTY_LINES = 16        # before a start line
    FREE_EXTENSION = 16         # bytes of a chunk's extension and its size's zeros, beside two for each byte in it
    MAX_NOMINATIONS = 100       # fields that Connection names: each is sought among all of the head


cdef enum ChunkState:
    SIZE_FIRST = 0
    SIZE_MORE
    SIZE_LF
    CHUNK_DATA
    DATA_CR
    DATA_LF
    TRAILER_START       # at the start of a line behind the last chunk
    TRAILER_LINE
    TRAILER_LF
    FINAL_LF
    CHUNKS_DONE
    # within a chunk's extensions, by what came last; these stay the last states
    EXT_BLANK           # blanks where an extension may begin
    EXT_SEMICOLON
    EXT_NAME
    EXT_NAME_BLANK
    EXT_EQUALS
    EXT_TOKEN
    EXT_QUOTED
    EXT_QUOTED_PAIR
    EXT_QUOTE           # that ends a quoted string


cdef class MessageReader:
    """Reads one message after the other; `RequestReader` and `ResponseReader` know the start lines."""

    def __init__(self):
        self.fields = FieldArray()
        self.partial = Buffer()
        self.head_copy = Buffer()
        self.body_pieces = []
        self.last_nominable = FIELD_EXPECT
        self.new_parser()

    # Called by httptools.

    def on_body(self, bytes data):
        self.body_pieces.append(data)

    def on_message_complete(self):
        self.message_complete = True

    # --- for subclasses ---

    cdef int new_parser(self) except -1:
        raise TypeError("a subclass says which parser")

    cdef int start_line(self, char* line, Py_ssize_t size) except -1:
        """Takes the start line, without its CRLF."""
        return 0

    cdef int judge(self) except -1:
        """Sets `body` and `length` from the framing fields, and whatever else the head decides."""
        return 0

    cdef int too_large(self, str what) except -1:
        raise MessageError(400, what)

    # --- reading ---

    cdef bint between_messages(self) noexcept:
        """Whether nothing of a next message has come."""
        return self.state == READ_HEAD and self.partial.size == 0

    cdef Event read(self, char** data, Py_ssize_t* size) except *:
        """Takes what it can from `data` and says what came of it; call again until NEED_DATA or END."""
        cdef Py_ssize_t taken, content, i
        cdef bytes piece
        if self.state == READ_HEAD:
            return self._read_head(data, size)
        if self.state == READ_FINISHED:
            return END
        if size[0] == 0:
            return NEED_DATA
        if self.state == READ_BODY:
            taken = size[0] if size[0] < self.body_left else <Py_ssize_t>self.body_left
            self.body_left -= taken
            content = taken
        elif self.state == READ_CHUNKS:
            self.chunk_content = 0
            taken = self._scan_chunks(data[0], size[0])
            content = self.chunk_content
        else:
            content = taken = size[0]
        self.feed(data[0], taken)
        for piece in self.body_pieces:
            content -= len(piece)
        if content != 0:
            raise MessageError(400, "the framing of the body is ambiguous")
        data[0] += taken
        size[0] -= taken
        if self.state == READ_BODY and self.body_left == 0 or self.chunk_state == CHUNKS_DONE:
            if not self.message_complete:
                raise MessageError(400, "the framing of the body is ambiguous")
            self.state = READ_FINISHED
            if self.chunk_state == CHUNKS_DONE and self.partial.size:
                self.trailer_fields = FieldArray()
                self._split_fields(self.partial.data, self.partial.data + self.partial.size, self.trailer_fields)
                for i in range(self.trailer_fields.count):
                    if self.trailer_fields.items[i].kind in (FIELD_CONNECTION, FIELD_PROXY_CONNECTION,
                                                             FIELD_TRANSFER_ENCODING):
                        self.parser_spent = True        # llhttp takes it for the head's, and reads nothing any more
                if self.nominates:
                    self._drop_nominated()
        elif self.message_complete:
            raise MessageError(400, "the framing of the body is ambiguous")
        if self.body_pieces:
            return BODY
        return END if self.state == READ_FINISHED else NEED_DATA

    cdef bytes take_body(self):
        """The bytes of the body that the last call of `read` announced."""
        cdef bytes body
        if len(self.body_pieces) == 1:
            body = <bytes>self.body_pieces[0]
        else:
            body = b"".join(self.body_pieces)
        self.body_pieces.clear()
        return body

    cdef int next_message(self) except -1:
        """The message is done with: what follows is the next one."""
        self.state = READ_HEAD
        self.empty_lines = 0
        self.message_complete = False
        self.chunk_state = SIZE_FIRST
        self.trailer_fields = None
        self.partial.release()
        self.head_copy.release()
        self.upgrade = False
        if self.parser_spent or self.parser_ends:
            self.new_parser()
            self.parser_spent = self.parser_ends = False
        return 0

    cdef int at_end_of_file(self) except -1:
        """The socket has ended: right for a body that runs to the close, and between messages.

        Raises MessageError where it cuts a message.
        """
        if self.state == READ_TO_CLOSE:
            self.state = READ_FINISHED
        elif self.state != READ_FINISHED and not self.between_messages():
            raise MessageError(400, "the connection ended within a message")
        return 0

    cdef int close(self) except -1:
        """Lets go of the parser, which refers back to the reader."""
        self.parser = None
        self.body_pieces.clear()
        self.partial.release()
        self.head_copy.release()
        self.state = READ_FINISHED
        return 0

    cdef int feed(self, char* data, Py_ssize_t size) except -1:
        if size == 0:
            return 0
        self.fed = data
        self.fed_size = size
        try:
            self.parser.feed_data(self)
        except HttpParserUpgrade:
            # llhttp ends the message here; whether it does is settled by `judge`.
            self.parser_spent = True
        except HttpParserInvalidMethodError:
            raise MessageError(501, "the method is not known") from None
        except HttpParserError as error:
            raise MessageError(400, f"malformed message: {error}") from None
        finally:
            self.fed = NULL
        return 0

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        """What llhttp is fed: a memoryview of it would be two objects for each request."""
        if self.fed == NULL:
            raise BufferError("nothing is being parsed")
        PyBuffer_FillInfo(buffer, self, self.fed, self.fed_size, True, flags)

    # --- the head ---

    cdef Event _read_head(self, char** data, Py_ssize_t* size) except *:
        cdef char* head
        cdef char* end
        cdef Py_ssize_t before = self.partial.size, start, taken
        while before == 0 and size[0] >= 2 and data[0][0] == c'\r' and data[0][1] == c'\n':
            # RFC 9112 §2.2: empty lines before a start line are ignored.
            data[0] += 2
            size[0] -= 2
            self._count_empty_line()
        if size[0] == 0:
            return NEED_DATA
        if before == 1 and self.partial.data[0] == c'\r' and data[0][0] == c'\n':
            # Such a line, cut in two.
            self.partial.size = 0
            data[0] += 1
            size[0] -= 1
            self._count_empty_line()
            return self._read_head(data, size)
        if before == 0:
            end = _find_blank_line(data[0], data[0] + size[0])
            if end != NULL:
                taken = end + 4 - data[0]
                head = data[0]
                data[0] += taken
                size[0] -= taken
                self._parse_head(head, taken)
                return HEAD
        taken = size[0]
        if taken > self.limits.head + 4 - before:
            taken = self.limits.head + 4 - before
        append(self.partial, data[0], taken)
        start = before - 3 if before > 3 else 0
        end = _find_blank_line(self.partial.data + start, self.partial.data + self.partial.size)
        if end != NULL:
            taken = end + 4 - self.partial.data
            data[0] += taken - before
            size[0] -= taken - before
            self.partial.size = taken
            self.head_copy, self.partial = self.partial, self.head_copy
            self.partial.size = 0
            self._parse_head(self.head_copy.data, self.head_copy.size)
            return HEAD
        if before == 0 and self.partial.data[0] != c'\r' and not _begins_with_token(self.partial.data):
            # TLS, or whatever else it is: nothing that comes behind can make it a start line.
            raise MessageError(400, "malformed start line")
        start = before - 1 if before else 0
        if _has_bare_line_end(self.partial.data + start, self.partial.size - start):
            raise MessageError(400, "a line of the head does not end in CRLF")
        if memchr(self.partial.data, c'\n', self.partial.size) == NULL:
            if self.partial.size > self.limits.target + 64:
                self.too_large("the start line is too long")
        if self.partial.size >= self.limits.head + 4:
            self.too_large("the head is too large")
        data[0] += taken
        size[0] -= taken
        return NEED_DATA

    cdef int _count_empty_line(self) except -1:
        self.empty_lines += 1
        if self.empty_lines > MAX_EMPTY_LINES:
            raise MessageError(400, "nothing but empty lines")
        return 0

    cdef int _parse_head(self, char* head, Py_ssize_t size) except -1:
        cdef char* end = head + size - 2        # the blank line
        cdef char* line_end
        while size > 4 and head[0] == c'\r' and head[1] == c'\n':
            head += 2
            size -= 2
        line_end = _find_line_end(head, head + size)
        self.start_line(head, line_end - head)
        if size > self.limits.head:
            self.too_large("the head is too large")
        self.fields.count = 0
        self._split_fields(line_end + 2, end, self.fields)
        self._connection()
        self.feed(head, size)
        self.judge()
        if self.parser_spent and self.body != BODY_NONE and not self.message_complete:
            raise MessageError(400, "the framing of the body is ambiguous")
        if self.body == BODY_NONE or self.body == BODY_SIZED and self.length == 0:
            if not self.message_complete:
                raise MessageError(400, "the framing of the body is ambiguous")
            self.state = READ_FINISHED
        elif self.message_complete:
            self._frame_again()
        if self.state != READ_FINISHED:
            if self.body == BODY_SIZED:
                self.state = READ_BODY
                self.body_left = self.length
            elif self.body == BODY_CHUNKED and self.length == -1:
                self.state = READ_CHUNKS
                self.chunk_state = SIZE_FIRST
                self.extension_bytes = self.trailer_bytes = 0
                self.partial.size = 0
                if self.nominates:
                    self._keep_nominations()
            else:
                self.state = READ_TO_CLOSE
        return 0

    def _frame_again(self):
        """llhttp passes over the body of a message that offers an upgrade; a fresh parser is told of the body."""
        if not self.parser_spent:
            raise MessageError(400, "the framing of the body is ambiguous")
        self.new_parser()
        self.parser_spent = False
        self.message_complete = False
        if self.body == BODY_SIZED:
            self.parser.feed_data(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % self.length)
        else:
            self.parser.feed_data(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")

    cdef int _split_fields(self, char* at, char* end, FieldArray fields) except -1:
        """Splits field lines; names become lower case in place."""
        cdef char* line_end
        cdef char* colon
        cdef Field field
        while at < end:
            line_end = _find_line_end(at, end)
            if line_end == NULL:
                line_end = end
            if line_end == at:
                break
            colon = <char*>memchr(at, c':', line_end - at)
            if colon == NULL:
                raise MessageError(400, "a field line without a colon")
            field.name.ptr = at
            field.name.size = colon - at
            field.value.ptr = colon + 1
            field.value.size = line_end - colon - 1
            trim(&field.value)
            if not make_lower_token(at, colon - at) or not is_field_value(field.value):
                raise MessageError(400, "a field with characters that may not stand in it")
            if fields.count == self.limits.fields:
                self.too_large("too many fields")
            field.kind = kind_of(field.name)
            fields.add(field)
            at = line_end + 2
        return 0

    cdef int _connection(self) except -1:
        """What Connection says (RFC 9110 §7.6.1): persistence, an upgrade, and fields that are of this hop only."""
        cdef Field* field
        cdef Slice rest, token
        cdef Py_ssize_t i
        cdef int nominations = 0
        cdef bint close = False, keep_alive = False, upgrade = False
        self.upgrade_value.size = 0
        self.nominates = False
        for i in range(self.fields.count):
            field = &self.fields.items[i]
            if field.kind == FIELD_OTHER:
                continue
            if field.kind == FIELD_UPGRADE:
                if self.upgrade_value.size == 0:
                    self.upgrade_value = field.value
            elif field.kind == FIELD_TRANSFER_ENCODING:
                _blank_tabs(&field.value)
            elif field.kind == FIELD_PROXY_CONNECTION:
                # RFC 9112 §C.2.2: no connection option. llhttp takes it for one, and might read nothing behind it.
                self.parser_ends = True
            elif field.kind == FIELD_CONNECTION:
                rest = field.value
                while next_token(&rest, &token):
                    if equals_lower(token, b"close", 5):
                        if not close:
                            # A field of that name has no meaning (RFC 9110 §18.4), but is named like any.
                            self._nominate(slice_of(b"close"))
                        close = True
                    elif equals_lower(token, b"keep-alive", 10):
                        keep_alive = True
                    elif equals_lower(token, b"upgrade", 7):
                        upgrade = True
                    else:
                        if not make_lower_token(<char*>token.ptr, token.size):
                            raise MessageError(400, "Connection is no list of tokens")
                        nominations += 1
                        if nominations > MAX_NOMINATIONS:
                            self.too_large("Connection names too many fields")
                        self.nominates = True
                        self._nominate(token)
        self.upgrade = upgrade and self.upgrade_value.size > 0
        self.keep_alive = not close and (self.minor == 1 or keep_alive)
        return 0

    cdef int _nominate(self, Slice name) except -1:
        """Keeps the fields of this name, in lower case, to this hop."""
        cdef Field* field
        cdef Py_ssize_t i
        for i in range(self.fields.count):
            field = &self.fields.items[i]
            if field.kind <= self.last_nominable and equals(field.name, name.ptr, name.size):
                field.kind = FIELD_NOMINATED
        return 0

    def _keep_nominations(self):
        """What Connection names is not this message's among the trailers either, and its head is gone by then."""
        cdef Py_ssize_t i
        self.nominated = nominated_by(b",".join([bytes_of(self.fields.items[i].value) for i in range(self.fields.count)
                                                 if self.fields.items[i].kind == FIELD_CONNECTION]))

    def _drop_nominated(self):
        cdef FieldArray fields = self.trailer_fields
        cdef Py_ssize_t i, kept = 0
        for i in range(fields.count):
            if bytes_of(fields.items[i].name) not in self.nominated:
                fields.items[kept] = fields.items[i]
                kept += 1
        fields.count = kept
        self.nominated = None

    # --- chunked bodies ---

    cdef int _count_extension(self) except -1:
        self.extension_bytes += 1
        if self.extension_bytes > self.limits.extensions:
            raise MessageError(400, "too many chunk extensions")
        return 0

    cdef Py_ssize_t _scan_chunks(self, char* data, Py_ssize_t size) except -1:
        """How many of these bytes belong to the body and its trailers (RFC 9112 §7.1).

        llhttp is the judge of what is well-formed; this finds the end, counts what llhttp does not limit, and keeps
        the trailers in `partial`. Extensions are judged here, as llhttp knows no blanks in them: they mean nothing to
        us, and what llhttp sees in their place is one plain extension of the same length.
        """
        cdef Py_ssize_t at = 0, part
        cdef int c
        while at < size and self.chunk_state != CHUNKS_DONE:
            c = <uint8_t>data[at]
            if self.chunk_state == CHUNK_DATA:
                part = size - at
                if part > self.chunk_left:
                    part = <Py_ssize_t>self.chunk_left
                self.chunk_left -= part
                self.chunk_content += part
                at += part
                if self.chunk_left == 0:
                    self.chunk_state = DATA_CR
                continue
            at += 1
            if self.chunk_state == SIZE_FIRST or self.chunk_state == SIZE_MORE:
                if self.chunk_state == SIZE_FIRST:
                    self.chunk_left = 0
                if c'0' <= c <= c'9':
                    c -= c'0'
                elif c'a' <= c | 0x20 <= c'f':
                    c = (c | 0x20) - c'a' + 10
                elif self.chunk_state == SIZE_FIRST:
                    raise MessageError(400, "a chunk without its size")
                elif c == c'\r':
                    self.chunk_state = SIZE_LF
                    continue
                elif c == c';' or c == c' ' or c == c'\t':
                    self.chunk_state = EXT_SEMICOLON if c == c';' else EXT_BLANK
                    data[at - 1] = c';'
                    continue
                else:
                    raise MessageError(400, "a chunk's size with something behind it")
                if self.chunk_left == 0 and self.chunk_state == SIZE_MORE:
                    # Zeros that say nothing: without a limit a body could be made of them.
                    self._count_extension()
                if self.chunk_left >> 56:
                    raise MessageError(400, "a chunk's size out of range")
                self.chunk_left = self.chunk_left << 4 | c
                self.chunk_state = SIZE_MORE
            elif self.chunk_state >= EXT_BLANK:
                self._count_extension()
                self.chunk_state = _extension_state(self.chunk_state, data + at - 1)
                if self.chunk_state < 0:
                    raise MessageError(400, "a malformed chunk extension")
                if self.chunk_state != SIZE_LF:
                    data[at - 1] = c'x'
            elif self.chunk_state == SIZE_LF:
                if c != c'\n':
                    raise MessageError(400, "a chunk's line does not end in CRLF")
                self.chunk_state = CHUNK_DATA if self.chunk_left else TRAILER_START
                if self.chunk_left:
                    # What is reasonable beside this much content; the limit is for what is more, over the whole body.
                    self.extension_bytes -= min(self.extension_bytes, FREE_EXTENSION + 2 * self.chunk_left)
            elif self.chunk_state == DATA_CR or self.chunk_state == DATA_LF:
                if c != (c'\r' if self.chunk_state == DATA_CR else c'\n'):
                    raise MessageError(400, "a chunk is longer than its size")
                self.chunk_state = DATA_LF if self.chunk_state == DATA_CR else SIZE_FIRST
            elif self.chunk_state == TRAILER_START and c == c'\r':
                self.chunk_state = FINAL_LF
            elif self.chunk_state == FINAL_LF:
                if c != c'\n':
                    raise MessageError(400, "the body's last line does not end in CRLF")
                self.chunk_state = CHUNKS_DONE
            else:
                self.trailer_bytes += 1
                if self.trailer_bytes > self.limits.trailers:
                    self.too_large("the trailers are too large")
                append(self.partial, data + at - 1, 1)
                if self.chunk_state == TRAILER_LF:
                    if c != c'\n':
                        raise MessageError(400, "a trailer's line does not end in CRLF")
                    self.chunk_state = TRAILER_START
                elif c == c'\r':
                    self.chunk_state = TRAILER_LF
                else:
                    self.chunk_state = TRAILER_LINE
        return at


cdef class RequestReader(MessageReader):
    """Reads requests."""

    cdef int new_parser(self) except -1:
        self.parser = HttpRequestParser(self)
        return 0

    cdef int too_large(self, str what) except -1:
        raise MessageError(414 if "start line" in what or "target" in what else 431, what)

    cdef int next_message(self) except -1:
        self.method.size = self.target.size = 0
        return MessageReader.next_message(self)

    cdef int read_begun_line(self) noexcept:
        """Finds method and target of a head that is refused, as far as they have come; empty where they have not."""
        cdef Slice rest
        cdef const char* end
        if self.partial.size == 0:
            return 0        # `start_line` has seen it, or there is none
        rest.ptr = self.partial.data
        rest.size = self.partial.size
        end = <const char*>memchr(rest.ptr, c'\n', rest.size)
        if end != NULL:
            rest.size = end - rest.ptr
            if rest.size and end[-1] == c'\r':
                rest.size -= 1
        end = <const char*>memchr(rest.ptr, c' ', rest.size)
        if end == NULL:
            return 0
        self.method.ptr = rest.ptr
        self.method.size = end - rest.ptr
        self.target.ptr = end + 1
        rest.size -= self.method.size + 1
        end = <const char*>memchr(self.target.ptr, c' ', rest.size)
        self.target.size = end - self.target.ptr if end != NULL else rest.size
        return 0

    cdef int start_line(self, char* line, Py_ssize_t size) except -1:
        """method SP request-target SP HTTP-version, with single spaces (RFC 9112 §3)."""
        cdef char* end = line + size
        cdef char* space = <char*>memchr(line, c' ', size)
        if space == NULL:
            raise MessageError(400, "malformed request line")
        self.method.ptr = line
        self.method.size = space - line
        self.target.ptr = space + 1
        space = <char*>memchr(space + 1, c' ', end - space - 1)
        if space == NULL:
            raise MessageError(400, "malformed request line")
        self.target.size = space - self.target.ptr
        if self.target.size > self.limits.target:
            self.too_large("the target is too long")
        if not is_token(self.method) or self.target.size == 0 or memchr(space + 1, c' ', end - space - 1) != NULL:
            raise MessageError(400, "malformed request line")
        if end - space != 9 or memcmp(space + 1, b"HTTP/", 5) != 0 or space[7] != c'.':
            raise MessageError(400, "malformed request line")
        if space[6] != c'1' or not (c'0' <= space[8] <= c'1'):
            if c'0' <= space[6] <= c'9' and c'0' <= space[8] <= c'9':
                raise MessageError(505, "HTTP/1.1 and HTTP/1.0 are spoken here")
            raise MessageError(400, "malformed request line")
        self.minor = space[8] - c'0'
        return 0

    cdef int judge(self) except -1:
        """RFC 9112 §6.3 for requests."""
        cdef Field* field
        cdef Py_ssize_t i
        cdef bint sized = False, coded = False
        self.length = -1
        for i in range(self.fields.count):
            field = &self.fields.items[i]
            if field.kind == FIELD_CONTENT_LENGTH:
                if sized:
                    raise MessageError(400, "more than one Content-Length")
                sized = True
                self.length = content_length(field.value)
            elif field.kind == FIELD_TRANSFER_ENCODING:
                if coded:
                    raise MessageError(400, "more than one Transfer-Encoding")
                coded = True
                if not equals_lower(field.value, b"chunked", 7):
                    raise MessageError(501, "a transfer coding other than chunked")
        if coded:
            if self.minor == 0:
                raise MessageError(400, "Transfer-Encoding in HTTP/1.0")
            if sized:
                raise MessageError(400, "Content-Length beside Transfer-Encoding")
            self.body = BODY_CHUNKED
        elif sized:
            self.body = BODY_SIZED
        else:
            self.body = BODY_NONE
        return 0


cdef class ResponseReader(MessageReader):
    """Reads responses; `answers_head` says beforehand that the next one answers a HEAD request."""

    def __init__(self):
        MessageReader.__init__(self)
        # A client has no say in what tells its way; a service has in what it says itself (RFC 9110 §7.6.1).
        self.last_nominable = FIELD_X_FORWARDED

    cdef int new_parser(self) except -1:
        self.parser = HttpResponseParser(self)
        return 0

    cdef int too_large(self, str what) except -1:
        raise MessageError(502, what, "http_response_header_section_size")

    cdef int start_line(self, char* line, Py_ssize_t size) except -1:
        """HTTP-version SP status-code SP [reason-phrase] (RFC 9112 §4); the space before no reason may be absent."""
        if (size < 12 or memcmp(line, b"HTTP/1.", 7) != 0 or not c'0' <= line[7] <= c'1' or line[8] != c' '
                or not (c'1' <= line[9] <= c'9' and c'0' <= line[10] <= c'9' and c'0' <= line[11] <= c'9')
                or size > 12 and line[12] != c' '):
            raise MessageError(400, "malformed status line")
        self.minor = line[7] - c'0'
        self.status = (line[9] - c'0') * 100 + (line[10] - c'0') * 10 + line[11] - c'0'
        self.reason.ptr = line + 13
        self.reason.size = size - 13 if size > 13 else 0
        if not is_field_value(self.reason):
            raise MessageError(400, "malformed status line")
        return 0

    cdef int judge(self) except -1:
        """RFC 9112 §6.3 for responses."""
        cdef Field* field
        cdef Py_ssize_t i
        cdef bint sized = False, coded = False
        self.length = -1
        for i in range(self.fields.count):
            field = &self.fields.items[i]
            if field.kind == FIELD_CONTENT_LENGTH:
                if sized:
                    raise MessageError(400, "more than one Content-Length")
                sized = True
                self.length = content_length(field.value)
            elif field.kind == FIELD_TRANSFER_ENCODING:
                if coded:
                    raise MessageError(400, "more than one Transfer-Encoding")
                coded = True
                if not equals_lower(field.value, b"chunked", 7):
                    raise MessageError(400, "a transfer coding other than chunked")
        if coded and (sized or self.minor == 0):
            raise MessageError(400, "ambiguous framing fields")
        if self.status < 200 or self.status == 204 or self.status == 304 or self.answers_head:
            if self.status < 200 and (coded or sized and self.length):
                raise MessageError(400, "an interim answer with a body")
            # llhttp waits for a body that an answer to HEAD only describes; it ends here, and a new parser follows.
            self.message_complete = True
            self.parser_spent = True
            self.body = BODY_NONE
        elif coded:
            self.body = BODY_CHUNKED
        elif sized:
            self.body = BODY_SIZED
        else:
            self.body = BODY_CHUNKED
            self.length = -2
            self.keep_alive = False
        return 0


cdef int64_t content_length(Slice value) except -1:
    """1*DIGIT (RFC 9110 §8.6), below 2**63."""
    cdef int64_t length = 0
    cdef Py_ssize_t i
    while value.size > 18 and value.ptr[0] == c'0':
        value.ptr += 1
        value.size -= 1
    if value.size == 0 or value.size > 18:
        raise MessageError(400, "a Content-Length that is no number of bytes")
    for i in range(value.size):
        if not c'0' <= value.ptr[i] <= c'9':
            raise MessageError(400, "a Content-Length that is no number of bytes")
        length = length * 10 + value.ptr[i] - c'0'
    return length
