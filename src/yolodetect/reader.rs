//! One stream's frames, read into slots: on the processor, or on the GPU that they lie on.

use std::sync::Arc;

use super::negotiation::{self, MAX_PLANES};
use crate::batch::batcher::Slot;
use crate::engine::ModelSpec;
use crate::engine::cuda_frames::{GpuConverter, GpuPlane, Refusal};
use crate::engine::device::Device;
use crate::memory::cuda::CudaMap;
use crate::preprocess::{Converter, Letterbox};

/// Made for each caps.
pub struct Reader {
    info: gst_video::VideoInfo,
    converter: Converter,
    place: Place,
}

/// Where frames lie, by their caps.
enum Place {
    Host,
    /// On a GPU, and read there.
    Gpu(Box<OnGpu>),
    /// On a GPU, and read on the host.
    Fetched,
}

struct OnGpu {
    /// The engine's device, as long as it does not move.
    device: Arc<str>,
    converter: GpuConverter,
    /// Frames that the host reads before the GPU is tried again.
    rest: u32,
    /// That memory is short was told.
    told: bool,
}

/// Where memory is short it may be there a second or two later.
const REST: u32 = 64;

impl Reader {
    /// `None` for caps that are not those of the pads. For frames that lie on a GPU and have to be read on the host, also why, where that
    /// is not the engine's being on no GPU.
    pub fn new(caps: &gst::CapsRef, spec: &ModelSpec, element: &str) -> Option<(Self, Option<Refusal>)> {
        let info = gst_video::VideoInfo::from_caps(caps).ok()?;
        let format = negotiation::frame_format(&info)?;
        let style = spec.layout.input_style();
        let converter = Converter::new(format, spec.input_size, style);
        let (place, refusal) = match negotiation::on_gpu(caps) {
            false => (Place::Host, None),
            true => {
                let device = spec.device.name();
                let gpu = Device::parse(&device).ok().and_then(|device| device.gpu());
                match gpu.map(|gpu| GpuConverter::new(gpu, format, spec.input_size, &style, element)) {
                    Some(Ok(converter)) => {
                        (Place::Gpu(Box::new(OnGpu { device, converter, rest: 0, told: false })), None)
                    }
                    Some(Err(refusal)) => (Place::Fetched, Some(refusal)),
                    None => (Place::Fetched, None),
                }
            }
        };
        Some((Self { info, converter, place }, refusal))
    }

    pub fn info(&self) -> &gst_video::VideoInfo {
        &self.info
    }

    pub fn letterbox(&self) -> &Letterbox {
        self.converter.letterbox()
    }

    /// Bytes of the host that a frame holds: GStreamer keeps what it has copied there.
    pub fn frame_bytes(&self) -> u64 {
        match self.place {
            Place::Gpu(_) => 0,
            Place::Host | Place::Fetched => self.info.size() as u64,
        }
    }

    /// Fills the slot, of an engine with this `spec`. Where the GPU does not do that, the host does, and it is said once why.
    ///
    /// # Errors
    /// Why the frame cannot be read at all.
    pub fn read(
        &mut self,
        buffer: &gst::BufferRef,
        spec: &ModelSpec,
        slot: &mut Slot,
    ) -> Result<Option<Refusal>, String> {
        negotiation::check_size(buffer, &self.info)?;
        let told = match &mut self.place {
            Place::Host | Place::Fetched => None,
            // The engine has moved.
            Place::Gpu(on_gpu) if on_gpu.device != spec.device.name() => {
                self.place = Place::Fetched;
                None
            }
            Place::Gpu(on_gpu) => match on_gpu.read(buffer, &self.info, slot) {
                Ok(true) => return Ok(None),
                Ok(false) => None,
                Err(refusal) if refusal.may_pass() => {
                    on_gpu.rest = REST;
                    let loading = matches!(refusal, Refusal::Loading);
                    (!loading && !std::mem::replace(&mut on_gpu.told, true)).then_some(refusal)
                }
                Err(refusal) => {
                    self.place = Place::Fetched;
                    Some(refusal)
                }
            },
        };
        self.read_on_host(buffer, slot).map(|()| told)
    }

    /// GStreamer has what lies on a GPU copied to the host for that.
    fn read_on_host(&mut self, buffer: &gst::BufferRef, slot: &mut Slot) -> Result<(), String> {
        let tensor = slot.tensor().ok_or("the slot is gone")?;
        let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &self.info)
            .map_err(|error| error.to_string())?;
        let (planes, count) = negotiation::planes(&frame).map_err(|error| error.to_string())?;
        self.converter.convert(&planes[..count], tensor).map_err(|error| error.to_string())
    }
}

impl OnGpu {
    /// Whether the frame was read: not where this one lies on no GPU, nor while memory was short lately.
    fn read(
        &mut self,
        buffer: &gst::BufferRef,
        info: &gst_video::VideoInfo,
        slot: &mut Slot,
    ) -> Result<bool, Refusal> {
        if self.rest > 0 {
            self.rest -= 1;
            return Ok(false);
        }
        let Some(map) = CudaMap::new(buffer).map_err(Refusal::Unreadable)? else { return Ok(false) };
        let span = map.span();
        let mut planes = [GpuPlane { memory: span, row_stride: 0 }; MAX_PLANES];
        let count = (info.n_planes() as usize).min(MAX_PLANES);
        for (index, plane) in planes.iter_mut().enumerate().take(count) {
            let place = negotiation::plane_place(buffer, info, index);
            let found = place.and_then(|(offset, row_stride)| {
                let memory = span.part(offset..span.bytes())?;
                Some(GpuPlane { memory, row_stride })
            });
            let beyond = || Refusal::Unreadable(format!("plane {index} does not lie in the frame's memory"));
            *plane = found.ok_or_else(beyond)?;
        }
        let Some(place) = slot.place() else { return Ok(false) };
        self.converter.convert(&planes[..count], place).map(|()| true)
    }
}
