//! The files of ONNX Runtime's providers for NVIDIA's GPUs: whether they are there and whole, and what libraries they need.
