module backstream.example/bench/frp

go 1.26

require github.com/fatedier/frp v0.70.1

