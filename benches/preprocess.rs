//! From pixels to tensors, by pixel format and size.

fn main() {}
