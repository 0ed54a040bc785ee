from backstream._codec cimport Field, FieldArray, GoAway, RequestHead, ResponseHead, Trailers


cdef tuple pairs_of(const Field* fields, Py_ssize_t count)
cdef object request_object(const RequestHead* head)
cdef object response_object(const ResponseHead* head)
cdef object goaway_object(const GoAway* raw)
cdef int fill_request(object source, RequestHead* head, FieldArray fields) except -1
cdef int fill_response(object source, ResponseHead* head, FieldArray fields) except -1
cdef int fill_trailers(object pairs, Trailers* trailers, FieldArray fields) except -1
