from backstream._http._message cimport RequestReader


cdef object own_answer(RequestReader reader, bint trace)
