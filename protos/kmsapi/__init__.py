"""Generated code of the kmsd gRPC API; the .proto files beside it are the documentation."""
