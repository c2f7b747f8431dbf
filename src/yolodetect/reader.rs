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
    /// On a GPU, and read there while the engine is on this device.
    Gpu(Arc<str>, Box<GpuConverter>),
    /// On a GPU, and read on the host.
    Fetched,
}

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
                    Some(Ok(converter)) => (Place::Gpu(device, Box::new(converter)), None),
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

    /// Bytes of the host that a frame holds.
    pub fn frame_bytes(&self) -> u64 {
        match self.place {
            Place::Host => self.info.size() as u64,
            _ => 0,
        }
    }

    /// Fills the slot, of an engine with this `spec`. Should the GPU not do that any more, the host does, from now on, and it is said why.
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
        let refusal = match &mut self.place {
            Place::Gpu(device, converter) if *device == spec.device.name() => {
                match read_on_gpu(converter, buffer, &self.info, slot) {
                    Some(Ok(())) => return Ok(None),
                    Some(Err(refusal)) => Some(refusal),
                    // Only this one lies elsewhere.
                    None => return self.read_on_host(buffer, slot).map(|()| None),
                }
            }
            // The engine has moved.
            Place::Gpu(..) => None,
            Place::Host | Place::Fetched => return self.read_on_host(buffer, slot).map(|()| None),
        };
        self.place = Place::Fetched;
        self.read_on_host(buffer, slot).map(|()| refusal)
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

/// `None` where the buffer lies on no GPU.
fn read_on_gpu(
    converter: &mut GpuConverter,
    buffer: &gst::BufferRef,
    info: &gst_video::VideoInfo,
    slot: &mut Slot,
) -> Option<Result<(), Refusal>> {
    let map = CudaMap::new(buffer)?;
    let span = map.span();
    let mut planes = [GpuPlane { memory: span, row_stride: 0 }; MAX_PLANES];
    let count = (info.n_planes() as usize).min(MAX_PLANES);
    for (index, plane) in planes.iter_mut().enumerate().take(count) {
        let (offset, row_stride) = negotiation::plane_place(buffer, info, index)?;
        *plane = GpuPlane { memory: span.part(offset..span.bytes())?, row_stride };
    }
    Some(converter.convert(&planes[..count], slot.place()?))
}
