from backstream._slice cimport Slice


cdef bint is_token(Slice s) noexcept
cdef bint is_lower_token(Slice s) noexcept
cdef bint make_lower_token(char* at, Py_ssize_t size) noexcept
cdef bint is_field_value(Slice s) noexcept
cdef bint is_target(Slice s) noexcept
cdef bint is_authority(Slice s) noexcept
cdef bint is_client_id(Slice s) noexcept
cdef bint equals_lower(Slice s, const char* text, Py_ssize_t size) noexcept
cdef bint is_switchable(Slice s) noexcept
cdef bint is_connection_field(Slice lower_name) noexcept
cdef frozenset nominated_by(bytes connection)
cdef bint is_peer(Slice s) noexcept
