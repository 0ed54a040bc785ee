"""A session's streams by their ids."""

import operator

from backstream._stream cimport Stream


cdef enum:
    FEWEST_SLOTS = 32               # powers of two
    KEPT_SLOTS = 512                # of an empty one: a session at work has dozens of streams, then none, then dozens

cdef object _by_id = operator.attrgetter("id")


cdef class StreamTable:
    """A session's streams by their ids.

    Ids count up by two, so that chains behind `id / 2` modulo a power of two are as short as can be. Not a dict, whose
    keys are objects: 1,450 instructions of a request in the proxy.
    """

    def __cinit__(self):
        self._slots = [None] * FEWEST_SLOTS

    cdef Stream get(self, uint32_t stream_id):
        cdef Stream stream = <Stream>self._slots[<Py_ssize_t>(stream_id >> 1) & len(self._slots) - 1]
        while stream is not None and stream.id != stream_id:
            stream = stream._slot_next
        return stream

    cdef int add(self, Stream stream) except -1:
        cdef Py_ssize_t slot
        if self.count == len(self._slots):
            self._resize(len(self._slots) * 2)
        slot = <Py_ssize_t>(stream.id >> 1) & len(self._slots) - 1
        stream._slot_next = <Stream>self._slots[slot]
        self._slots[slot] = stream
        self.count += 1
        return 0

    cdef int discard(self, Stream stream) except -1:
        cdef Py_ssize_t slot = <Py_ssize_t>(stream.id >> 1) & len(self._slots) - 1
        cdef Stream before = <Stream>self._slots[slot]
        if before is stream:
            self._slots[slot] = stream._slot_next
        else:
            while before is not None and before._slot_next is not stream:
                before = before._slot_next
            if before is None:
                return 0
            before._slot_next = stream._slot_next
        stream._slot_next = None
        self.count -= 1
        if self.count == 0 and len(self._slots) > KEPT_SLOTS:
            self._slots = [None] * FEWEST_SLOTS
        return 0

    cdef list in_order(self):
        """All streams, oldest first."""
        cdef list streams = self._all()
        streams.sort(key=_by_id)
        return streams

    cdef list _all(self):
        cdef list streams = []
        cdef Stream stream
        for stream in self._slots:
            while stream is not None:
                streams.append(stream)
                stream = stream._slot_next
        return streams

    cdef int _resize(self, Py_ssize_t size) except -1:
        cdef list streams = self._all()
        cdef Stream stream
        self._slots = [None] * size
        self.count = 0
        for stream in streams:
            self.add(stream)
        return 0
