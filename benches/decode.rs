//! From a model's output to detections, by layout and number of candidates.

fn main() {}
