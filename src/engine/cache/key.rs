//! What an optimised model depends on. Pure.

use xxhash_rust::xxh3::xxh3_128;

/// Of the files and the manifest; entries of another are not found.
const FORMAT: u32 = 1;

/// Names an entry: equal keys have equal content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// For the CPU, at ONNX Runtime's highest level. `model` is the hash of its file, `library` tells one build of ONNX
    /// Runtime from any other.
    ///
    /// Neither threads nor batch nor head are part of it: the graph is the same.
    pub fn new(model: u128, library: &str, processor: &str) -> Self {
        Self(format!(
            "format={FORMAT}\nmodel={model:032x}\nlibrary={library}\nlevel=all\ndevice=cpu\nprocessor={processor}\n"
        ))
    }

    /// All that it is made of.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// The entry's folder.
    pub fn name(&self) -> String {
        format!("{:032x}", xxh3_128(self.0.as_bytes()))
    }
}

/// Whether a folder could be an entry's.
pub fn is_name(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The instruction sets that ONNX Runtime chooses its kernels and its layout of weights by.
pub fn processor() -> String {
    let mut sets = vec![std::env::consts::ARCH];
    macro_rules! add {
        ($detected:ident: $($set:tt)*) => {
            $(if std::arch::$detected!($set) {
                sets.push($set);
            })*
        };
    }
    #[cfg(target_arch = "x86_64")]
    add!(is_x86_feature_detected: "sse4.1" "avx" "avx2" "fma" "f16c" "avxvnni" "avx512f" "avx512bw" "avx512dq" "avx512vl"
        "avx512vnni" "avx512bf16" "avx512fp16");
    #[cfg(target_arch = "aarch64")]
    add!(is_aarch64_feature_detected: "neon" "dotprod" "fp16" "i8mm" "bf16" "sve" "sve2");
    sets.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_an_optimised_model_depends_on_makes_another_entry() {
        let key = Key::new(1, "1.31.1 a", "x86_64 avx");
        assert_eq!(key.name(), Key::new(1, "1.31.1 a", "x86_64 avx").name());
        assert!(is_name(&key.name()));
        for other in [
            Key::new(2, "1.31.1 a", "x86_64 avx"),
            Key::new(1, "1.31.1 b", "x86_64 avx"),
            Key::new(1, "1.31.1 a", "x86_64 avx avx512f"),
        ] {
            assert_ne!(key.name(), other.name());
        }
        for other in ["", ".new-1", "0123", &"g".repeat(32), &"A".repeat(32)] {
            assert!(!is_name(other), "{other}");
        }
        assert!(processor().starts_with(std::env::consts::ARCH));
    }
}
