// A program over the original implementation's library, to measure beside it.
module backstream.example/bench/backstream-original

go 1.21

require github.com/grepplabs/backstream v0.0.2
