//! Chooses at run time how wide the vectors of a loop may be. The one place of decoding with `unsafe`.
//!
//! The loops are plain Rust over arrays of a fixed length, which the compiler turns into vectors; this only has them
//! compiled a second time, for processors with AVX2. So every processor runs the same source, and gives the same result.

/// A computation that is worth compiling for wider vectors. Mark `run` and what it calls in its loops
/// `#[inline(always)]`: what is not inlined is compiled for every processor.
pub(super) trait Kernel {
    type Output;

    fn run(self) -> Self::Output;
}

/// Runs the kernel as compiled for this processor.
pub(super) fn vectorised<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
        // SAFETY: both features are there.
        return unsafe { with_avx2(kernel) };
    }
    // Vectors of 128 bits: SSE2 on x86-64, NEON on AArch64, which are always there.
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn with_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}
