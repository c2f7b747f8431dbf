//! An element with an engine that does nothing: what a frame costs besides.

fn main() {}
