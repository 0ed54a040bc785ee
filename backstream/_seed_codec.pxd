from backstream._codec cimport RequestHead, ResponseHead
from backstream._seed_reader cimport SeedType


cdef enum:
    SEED_ID_SIZE = 36               # a UUID in text


cdef bytes new_id()

# An event's start: all of it but the body, which comes last. In JSON it is a dict to be completed.
cdef object start_request(bint json, const RequestHead* head)
cdef object start_response(bint json, const ResponseHead* head)

# How large a message with `body_size` bytes of body behind that start becomes; never less than it is.
cdef Py_ssize_t message_size(bint json, object start, Py_ssize_t body_size) except -1
# All of a message but the bytes of its body, which follow; in JSON the whole message.
cdef bytes finish_message(bint json, bytes message_id, SeedType kind, object start, list body, Py_ssize_t body_size)
# A message around an event that is packed already.
cdef bytes pack_message(bint json, bytes message_id, SeedType kind, bytes data)
