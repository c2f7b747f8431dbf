//! Programs of our own on a GPU.

use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::Arc;

use super::{Card, Copies, DeviceMemory, DriverError, Shared, Source};
use crate::engine::gpu::compiler::Image;

/// The one argument of a kernel, as its source has it.
///
/// # Safety
/// The type is laid out as the kernel's own, and what it points to on the GPU is there for as long as the kernel runs.
pub unsafe trait Argument: Copy {}

/// A function that runs on the GPU; its code stays there until this is dropped.
pub struct Kernel {
    card: Arc<Card>,
    module: Shared,
    function: Shared,
}

impl Card {
    /// The function `name` of what was compiled.
    ///
    /// # Errors
    /// Where the driver does not take it, or it has no such function.
    pub fn kernel(self: &Arc<Self>, image: &Image, name: &CStr) -> Result<Kernel, DriverError> {
        let _current = self.enter()?;
        let (mut module, mut function) = (ptr::null_mut(), ptr::null_mut());
        let start = image.bytes().as_ptr().cast::<c_void>();
        // SAFETY: the image is as the compiler made it, whose length is in it; the driver writes one handle, ours until it is unloaded.
        unsafe { call!(self.api, cuModuleLoadData(&mut module, start)) }?;
        // SAFETY: the module is there; it writes one handle, which goes with the module.
        let found = unsafe { call!(self.api, cuModuleGetFunction(&mut function, module, name.as_ptr())) };
        if let Err(error) = found {
            // SAFETY: it was loaded above, and nobody has it.
            let _ = unsafe { call!(self.api, cuModuleUnload(module)) };
            return Err(error);
        }
        Ok(Kernel { card: self.clone(), module: Shared(module), function: Shared(function) })
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // SAFETY: it was loaded once, in this context, and each run of it was waited for.
        self.card.give_back(|api| unsafe { call!(api, cuModuleUnload(self.module.0)) });
    }
}

/// A kernel that is to run: a thread for each place of `width` × `height`, in blocks of 32 × 8, so that some threads may lie beyond.
pub struct Launch<'a, T: Argument> {
    pub kernel: &'a Kernel,
    pub size: (u32, u32),
    pub argument: &'a T,
}

impl Copies {
    /// As [`Copies::gather`], and runs the kernel after that; both are done when this returns.
    ///
    /// # Errors
    /// Where the driver fails, for a kernel of another GPU, and as [`Copies::gather`].
    pub fn gather_and_launch<'a, T: Argument>(
        &self,
        parts: impl IntoIterator<Item = (usize, Source<'a>)> + Clone,
        to: &DeviceMemory,
        launch: &Launch<'_, T>,
    ) -> Result<(), DriverError> {
        if launch.kernel.card.context != self.card.context {
            return Err(DriverError::refused(LAUNCH, "the kernel is another GPU's".into()));
        }
        self.look_at_all(parts.clone(), to)?;
        self.run(|| {
            self.begin_all(parts, to)?;
            self.begin_launch(launch)
        })
    }

    fn begin_launch<T: Argument>(&self, launch: &Launch<'_, T>) -> Result<(), DriverError> {
        // A row of threads reads and writes a row of memory.
        const BLOCK: (u32, u32) = (32, 8);
        let Launch { kernel, size: (width, height), argument } = *launch;
        let blocks = (width.div_ceil(BLOCK.0), height.div_ceil(BLOCK.1));
        let mut arguments = [ptr::from_ref(argument).cast_mut().cast::<c_void>()];
        // SAFETY: the argument is what the kernel takes, and what it points to stays, by its trait; the driver copies it before this
        // returns, and the kernel's end is waited for.
        unsafe {
            call!(
                self.card.api,
                cuLaunchKernel(
                    kernel.function.0,
                    blocks.0,
                    blocks.1,
                    1,
                    BLOCK.0,
                    BLOCK.1,
                    1,
                    0,
                    self.stream.0,
                    arguments.as_mut_ptr(),
                    ptr::null_mut()
                )
            )
        }
    }
}

const LAUNCH: &str = "cuLaunchKernel";
