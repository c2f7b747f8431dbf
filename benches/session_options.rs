//! What ONNX Runtime's session options do to time and memory.

fn main() {}
