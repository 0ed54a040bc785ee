module backstream.example/bench/chisel

go 1.26

require github.com/jpillora/chisel v1.10.1

