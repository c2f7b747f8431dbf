//! The vectorised inner loops beside the scalar ones, and what they do not read.

use super::*;
use std::ops::Range as Span;

/// Each as a call: which are the fastest is known at run time.
pub(super) const ALL: [fn() -> Kernels; 2] = [|| Kernels::SCALAR, Kernels::best];

/// What a value may differ by from the book, in the tensor's own unit.
pub(super) fn tolerance(kernels: Kernels, style: InputStyle) -> f64 {
    let step = if kernels == Kernels::SCALAR { 1e-3 } else { 0.04 };
    step * f64::from(style.range.max()) / 255.0
}

#[test]
fn the_fastest_kernels_are_vectorised_where_the_processor_is_new_enough() {
    #[cfg(target_arch = "x86_64")]
    let expected =
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") { "avx2" } else { "scalar" };
    #[cfg(target_arch = "aarch64")]
    let expected = "neon";
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let expected = "scalar";
    assert_eq!((Kernels::best().name(), Kernels::SCALAR.name()), (expected, "scalar"));
}

proptest! {
    /// Wide frames, so that the vectors are full and every way to load them comes up.
    #[test]
    fn vectors_agree_with_the_scalar_kernels(
        pixel in 0..FORMATS.len(),
        size in (1u32..900, 1u32..24),
        model in (1u32..150, 1u32..80),
        limited: bool,
        (horizontal_cosited, vertical_cosited) in any::<(bool, bool)>(),
        yolox: bool,
        slack in 0usize..40,
    ) {
        let range = if limited { Range::Limited } else { Range::Full };
        let format = FrameFormat {
            chroma: ChromaSite { horizontal_cosited, vertical_cosited },
            ..format(FORMATS[pixel], size, Colorimetry { matrix: Matrix::Bt709, range })
        };
        let frame = Frame::noise(format, slack, 0);
        let style = if yolox { InputStyle::YOLOX } else { InputStyle::ULTRALYTICS };
        let tolerance = tolerance(Kernels::best(), style);
        let expected: Vec<f64> =
            frame.convert_with(Kernels::SCALAR, model, style).into_iter().map(f64::from).collect();
        assert_close(&frame.convert_with(Kernels::best(), model, style), &expected, tolerance);
        let halves = frame.convert_to_f16(Kernels::best(), model, style);
        for (half, expected) in halves.iter().zip(&expected) {
            // Half of a step of f16's 11 bits more.
            let allowed = tolerance + expected / 2048.0 + 1e-7;
            prop_assert!((half.to_f64() - expected).abs() <= allowed, "{half}, not {expected}");
        }
    }
}

/// Whole pages, of which some cannot be read.
struct Pages {
    start: *mut u8,
    len: usize,
}

impl Pages {
    fn size() -> usize {
        // SAFETY: asks for a number.
        unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
    }

    fn new(count: usize) -> Self {
        let len = count * Self::size();
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new memory, at an address of the system's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, access, kind, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        Self { start: start.cast(), len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped, zeroed and ours; called before pages are forbidden.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }

    /// Whoever reads or writes these pages from now on is killed.
    fn forbid(&mut self, pages: Span<usize>) {
        let size = Self::size();
        assert!(pages.end * size <= self.len);
        // SAFETY: within the mapping; nobody holds a reference to it.
        let done = unsafe {
            libc::mprotect(self.start.add(pages.start * size).cast(), pages.len() * size, libc::PROT_NONE)
        };
        assert_eq!(done, 0);
    }

    fn part(&self, part: Span<usize>) -> &[u8] {
        assert!(part.end <= self.len);
        // SAFETY: mapped and initialised; what is forbidden in it is what this file shows not to be read.
        unsafe { std::slice::from_raw_parts(self.start.add(part.start), part.len()) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: what `new` has mapped.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

fn convert(kernels: Kernels, format: FrameFormat, planes: &[Plane<'_>], model: (u32, u32)) -> Vec<f32> {
    let mut out = vec![f32::NAN; 3 * (model.0 * model.1) as usize];
    Converter::with_kernels(format, model, BYTES, kernels)
        .convert(planes, fresh(TensorMut::F32(&mut out), &mut Margin::default()))
        .expect("the frame is complete");
    out
}

/// Planes that begin or end beside a page that cannot be read.
#[test]
fn nothing_outside_a_plane_is_read() {
    for pixel in FORMATS {
        for (size, model) in [
            ((8, 3), (8, 3)),
            ((16, 4), (16, 16)),
            ((17, 3), (40, 7)),
            ((33, 5), (11, 5)),
            ((66, 6), (22, 2)),
            ((100, 7), (37, 9)),
            ((768, 3), (64, 64)),
        ] {
            let frame = Frame::noise(format(pixel, size, FULL), 0, 0);
            let expected = ALL.map(|kernels| frame.convert_with(kernels(), model, BYTES));
            for at_the_end in [false, true] {
                let guarded: Vec<(Pages, Span<usize>)> = frame
                    .planes
                    .iter()
                    .map(|(data, _)| {
                        let page = Pages::size();
                        let used = data.len().div_ceil(page);
                        let mut pages = Pages::new(used + 2);
                        let start = if at_the_end { (used + 1) * page - data.len() } else { page };
                        let place = start..start + data.len();
                        pages.bytes()[place.clone()].copy_from_slice(data);
                        pages.forbid(0..1);
                        pages.forbid(used + 1..used + 2);
                        (pages, place)
                    })
                    .collect();
                let planes: Vec<Plane<'_>> = guarded
                    .iter()
                    .zip(&frame.planes)
                    .map(|((pages, place), &(_, row_stride))| Plane {
                        data: pages.part(place.clone()),
                        row_stride,
                    })
                    .collect();
                let found = ALL.map(|kernels| convert(kernels(), frame.format, &planes, model));
                assert_eq!(found, expected, "{pixel:?} {size:?}");
            }
        }
    }
}

/// One row to a page; those that the picture does not lie on cannot be read.
#[test]
fn rows_that_the_picture_skips_are_not_read() {
    // A sixth of the size: rows 6 i + 2 and 6 i + 3 count, or of every two rows' chroma 3 i + 1 alone.
    let (size, model) = ((960, 54), (160, 9));
    for pixel in FORMATS {
        let frame = Frame::noise(format(pixel, size, FULL), 0, 0);
        let expected = ALL.map(|kernels| frame.convert_with(kernels(), model, BYTES));
        let page = Pages::size();
        let guarded: Vec<Pages> = frame
            .planes
            .iter()
            .map(|(data, row_bytes)| {
                let rows: Vec<&[u8]> = data.chunks_exact(*row_bytes).collect();
                let mut pages = Pages::new(rows.len());
                for (page, row) in pages.bytes().chunks_exact_mut(page).zip(&rows) {
                    page[..row.len()].copy_from_slice(row);
                }
                for row in 0..rows.len() {
                    let counts = if rows.len() == 54 { row % 6 == 2 || row % 6 == 3 } else { row % 3 == 1 };
                    if !counts {
                        pages.forbid(row..row + 1);
                    }
                }
                pages
            })
            .collect();
        let planes: Vec<Plane<'_>> =
            guarded.iter().map(|pages| Plane { data: pages.part(0..pages.len), row_stride: page }).collect();
        let found = ALL.map(|kernels| convert(kernels(), frame.format, &planes, model));
        assert_eq!(found, expected, "{pixel:?}");
    }
}

#[test]
fn source_bytes_are_those_of_the_rows_that_count() {
    let bytes = |pixel, size, model| Converter::new(format(pixel, size, FULL), model, BYTES).source_bytes();
    assert_eq!(bytes(PixelFormat::Bgr, (1920, 1080), (640, 640)), 360 * 5760);
    // Every luma row of three; of chroma rows 1.5 i + 0.25, all.
    assert_eq!(bytes(PixelFormat::Nv12, (1920, 1080), (640, 640)), 360 * 1920 + 540 * 1920);
    assert_eq!(bytes(PixelFormat::Gray8, (960, 54), (160, 9)), 18 * 960);
    assert_eq!(bytes(PixelFormat::Gray8, (16, 4), (64, 64)), 4 * 16);
    assert_eq!(bytes(PixelFormat::Gray8, (1, 1), (8, 8)), 1);
}
