"""The wires' messages for the protobuf runtime, generated from `proto/` by `make proto`: never edit them."""
