from libc.stdint cimport uint8_t


cdef enum:
    OPCODE_BINARY = 2               # RFC 6455 §5.2
    FIN = 0x80


cdef class FrameWriter:
    """Writes WebSocket frames to one connection, whole or into what the transport has queued already."""
    cdef:
        readonly bint masks             # a client's frames have masks (RFC 6455 §5.1)
        bint _plain                     # what is written goes to the socket as it is
        int _fd
        object _write
        object _queued                  # bytes that wait in the transport

    cdef int message(self, char* payload, Py_ssize_t size) except -1
    cdef int control(self, bytes frame) except -1
    cdef bytes payload_of(self, bytes frame)
    cdef int write(self, const char* data, Py_ssize_t size) except -1


cdef char* put_header(char* at, uint8_t first, Py_ssize_t size, bint masked) except NULL
cdef void mask_payload(char* payload, Py_ssize_t size) noexcept nogil
