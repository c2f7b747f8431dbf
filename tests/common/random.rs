//! Chance that can be repeated: a failing test prints its seed, `YOLODETECT_SEED` sets it.
#![allow(dead_code)]

use std::ops::Range;

use proptest::prelude::RngExt;
use proptest::test_runner::{RngAlgorithm, TestRng};

pub struct Random(TestRng);

/// The seed of all chance in a test.
pub fn seed() -> u64 {
    let seed = match std::env::var("YOLODETECT_SEED") {
        Ok(text) => text.parse().unwrap_or_else(|error| panic!("YOLODETECT_SEED={text}: {error}")),
        Err(_) => 1,
    };
    println!("YOLODETECT_SEED={seed}");
    seed
}

impl Random {
    /// One of many generators for the same seed.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8..16].copy_from_slice(&stream.to_le_bytes());
        Self(TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
    }

    pub fn within(&mut self, range: Range<u64>) -> u64 {
        self.0.random_range(range)
    }

    pub fn percent(&mut self, chance: u64) -> bool {
        self.within(0..100) < chance
    }

    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.within(0..list.len() as u64) as usize]
    }
}
