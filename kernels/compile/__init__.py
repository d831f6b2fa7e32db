"""The compiler: an ONNX model in, smaller or faster variants of it out. Offline; an actor imports none of it."""
