from libc.stdint cimport uint64_t

from backstream._buffer cimport Buffer
from backstream._codec cimport FieldArray, RequestHead
from backstream._http._trust cimport ADDRESS_TEXT, Address, Chain, Networks
from backstream._slice cimport Slice


cdef enum:
    MAX_REQUEST_ID = 128    # bytes

cdef struct RequestId:
    char text[MAX_REQUEST_ID]
    Py_ssize_t size


cdef class Peer:
    """Who is at the other end of a connection, in the forms in which that is passed on."""
    cdef:
        readonly object address         # (host, port), None where the connection has none
        bytes text                      # ip:port, as RequestHead has it
        bytes ip                        # as X-Forwarded-For has it
        bytes element                   # "for=…" of Forwarded
        bytes scheme
        bint trusted                    # what it says of others is believed
        Address raw


cdef class Forwarding:
    """What the connections of one listener share."""
    cdef:
        # configuration
        readonly Networks trusted       # None: nobody is
        bint x_forwarded
        bytes name                      # in Via
        bytes via                       # its value for HTTP/1.1
        bytes via_1_0
        bytes via_line                  # for responses
        # state
        bytes id_prefix
        uint64_t ids_made
        # of the request whose head is being made, valid until the next one
        Buffer values
        Chain chain
        char client_text[ADDRESS_TEXT]
        Slice client
        Slice scheme
        list earlier_forwarded          # lines that a trusted peer sent
        list earlier_for
        bytes earlier_proto
        bytes earlier_host

    cdef Peer peer(self, object address, bytes scheme)
    cdef object read_trail(self, Peer peer, FieldArray fields)
    cdef int take_request_id(self, Slice given, RequestId* request_id) noexcept
    cdef int add_fields(self, Peer peer, RequestHead* head, FieldArray fields, const RequestId* request_id) except -1
    cdef Slice _forwarded(self, Peer peer, Slice authority) except *
    cdef int _add_x_forwarded(self, Peer peer, Slice authority, FieldArray fields) except -1


cdef bint names_us(Slice via, bytes name) noexcept
