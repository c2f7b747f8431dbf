//! Content of files by its hash: XXH3 of 128 bits, which tells files apart and finds damage, not forgery.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// Of a file, without holding it in memory.
pub fn of_file(path: &Path) -> io::Result<u128> {
    checksum(&mut File::open(path)?)
}

/// Of what is in memory.
pub fn of(content: &[u8]) -> u128 {
    xxh3_128(content)
}

/// Of what is left to read.
pub fn checksum(from: &mut impl Read) -> io::Result<u128> {
    let mut hash = Xxh3::new();
    let mut chunk = vec![0; 1 << 16];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return Ok(hash.digest128()),
            Ok(read) => hash.update(&chunk[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
}
