"""WebSocket frames on their way out (RFC 6455 §5): header, mask, socket.

Rules that hold here:
- A client's masking keys are the system's random bytes, a new one for each frame (§5.3, §10.3). picows takes them from
  `rand()`, which nobody has seeded: the same in every process.
- A frame is masked where it lies and goes to the socket from there. What the socket does not take is copied, once, and
  waits in the transport; until that is gone everything else queues behind it, so no frame comes within another.
"""

import os

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy


cdef extern from "<sys/socket.h>" nogil:
    ssize_t send(int fd, const void* data, size_t size, int flags)
    int MSG_NOSIGNAL

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>

    typedef uint64_t mask_block __attribute__((vector_size(32), aligned(1), may_alias));

    static inline __attribute__((always_inline)) void mask_blocks(char *data, size_t size, uint32_t key) {
        const uint64_t two = (uint64_t)key << 32 | key;
        const mask_block keys = {two, two, two, two};
        size_t at = 0;
        for (; at + 128 <= size; at += 128) {
            mask_block *to = (mask_block *)(data + at);
            to[0] ^= keys;
            to[1] ^= keys;
            to[2] ^= keys;
            to[3] ^= keys;
        }
        for (; at + 8 <= size; at += 8) {
            uint64_t word;
            memcpy(&word, data + at, 8);
            word ^= two;
            memcpy(data + at, &word, 8);
        }
        for (; at < size; at++)
            data[at] ^= ((const char *)&key)[at & 3];
    }

    #ifdef __x86_64__
    __attribute__((target("avx2"))) static void mask_avx2(char *data, size_t size, uint32_t key) {
        mask_blocks(data, size, key);
    }
    #endif

    /* XORs bytes with the key's four, over and over (RFC 6455 5.3), in blocks as wide as the CPU has them. */
    static void apply_mask(char *data, size_t size, uint32_t key) {
    #ifdef __x86_64__
        if (size >= 128 && __builtin_cpu_supports("avx2")) {
            mask_avx2(data, size, key);
            return;
        }
    #endif
        mask_blocks(data, size, key);
    }
    """
    void apply_mask(char* data, size_t size, uint32_t key) nogil

cdef enum:
    KEY_POOL = 4096                 # bytes of keys that are asked for at once
    MAX_CONTROL = 131               # bytes of a client's control frame: header, key, 125 of payload

cdef uint8_t _keys[KEY_POOL]
cdef int _keys_at = KEY_POOL


def _forget_keys():
    global _keys_at
    _keys_at = KEY_POOL


os.register_at_fork(after_in_child=_forget_keys)        # or parent and child would use the same ones


cdef int _put_key(char* at) except -1:
    """Four bytes that nobody can foresee."""
    global _keys_at
    cdef bytes fresh
    if _keys_at == KEY_POOL:
        fresh = os.urandom(KEY_POOL)
        memcpy(_keys, <const char*>fresh, KEY_POOL)
        _keys_at = 0
    memcpy(at, _keys + _keys_at, 4)
    _keys_at += 4
    return 0


cdef inline Py_ssize_t _header_size(Py_ssize_t size, bint masked) noexcept:
    return (2 if size < 126 else 4 if size < 65536 else 10) + (4 if masked else 0)


cdef char* put_header(char* at, uint8_t first, Py_ssize_t size, bint masked) except NULL:
    """Writes a frame's header, up to 14 bytes with a key of its own, and returns where its payload belongs.

    first: FIN and the opcode. Where it is masked, `mask_payload` follows once the payload is there.
    """
    cdef uint8_t mask_bit = 0x80 if masked else 0
    cdef int i
    at[0] = <char>first
    if size < 126:
        at[1] = <char>(mask_bit | <uint8_t>size)
        at += 2
    elif size < 65536:
        at[1] = <char>(mask_bit | 126)
        at[2] = <char>(size >> 8)
        at[3] = <char>size
        at += 4
    else:
        at[1] = <char>(mask_bit | 127)
        for i in range(8):
            at[2 + i] = <char>(size >> (56 - 8 * i))
        at += 10
    if masked:
        _put_key(at)
        at += 4
    return at


cdef void mask_payload(char* payload, Py_ssize_t size) noexcept nogil:
    """Masks a payload with the key before it."""
    cdef uint32_t key
    memcpy(&key, payload - 4, 4)
    apply_mask(payload, size, key)


cdef class FrameWriter:
    """transport: an asyncio transport; masks: this end is the client; encrypted: the transport's bytes are TLS's."""

    def __init__(self, transport, bint masks, bint encrypted):
        self.masks = masks
        self._plain = not encrypted
        self._fd = transport.get_extra_info("socket").fileno()
        self._write = transport.write
        self._queued = transport.get_write_buffer_size

    cdef int message(self, char* payload, Py_ssize_t size) except -1:
        """A whole message in one frame. There are 14 bytes of room before it, and it is masked where it lies."""
        cdef Py_ssize_t before = _header_size(size, self.masks)
        put_header(payload - before, FIN | OPCODE_BINARY, size, self.masks)
        if self.masks:
            mask_payload(payload, size)
        return self.write(payload - before, before + size)

    cdef int write(self, const char* data, Py_ssize_t size) except -1:
        """Whole frames. They go to the socket at once where nothing waits before them."""
        cdef Py_ssize_t sent = 0
        if self._plain and not <Py_ssize_t>self._queued():
            sent = send(self._fd, data, size, MSG_NOSIGNAL)
            if sent == size:
                return 0
            if sent < 0:
                sent = 0        # it is full; or broken, which the transport finds out as well
        self._write(PyBytes_FromStringAndSize(data + sent, size - sent))
        return 0

    cdef int control(self, bytes frame) except -1:
        """A control frame as picows makes it. A client's gets a key that nobody can foresee in place of picows'."""
        cdef char data[MAX_CONTROL]
        cdef Py_ssize_t size = len(frame)
        cdef uint32_t old, new
        if not self.masks:
            return self.write(frame, size)
        _check_control(frame)
        memcpy(data, <const char*>frame, size)
        memcpy(&old, data + 2, 4)
        _put_key(data + 2)
        memcpy(&new, data + 2, 4)
        apply_mask(data + 6, size - 6, old ^ new)
        return self.write(data, size)

    cdef bytes payload_of(self, bytes frame):
        """What a control frame of picows' says."""
        cdef char data[MAX_CONTROL]
        cdef Py_ssize_t size = len(frame)
        if not self.masks:
            return frame[2:]
        _check_control(frame)
        memcpy(data, <const char*>frame, size)
        mask_payload(data + 6, size - 6)
        return data[6:size]


cdef int _check_control(bytes frame) except -1:
    if not 6 <= len(frame) <= MAX_CONTROL or len(frame) != 6 + (frame[1] & 0x7f):
        raise ValueError("no control frame of a client's")
    return 0
