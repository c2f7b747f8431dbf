//! The part of a camera's pipeline that is replaced at every connection: `rtspsrc` and what decodes its
//! video.
//!
//! ```text
//! rtspsrc ! decodebin3 ! videoconvert ! (ghost pad, guarded) ! the camera's tail
//! ```
//! Nothing but frames of a connection that is alive gets past the guard: the end of a stream or a flush would
//! reach the detector, which goes on with the next connection.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use gst::prelude::*;

use crate::cameras::Entry;

/// Posted when the camera says that its stream is over.
pub const ENDED: &str = "ended";

/// Every thread of the software decoders holds frames of its own, and each camera has a decoder: two keep up
/// with large pictures, and the cameras together keep all processors busy.
const DECODER_THREADS: i32 = 2;

/// How cameras are reached.
#[derive(Clone, Debug)]
pub struct Connection {
    /// In the words of `rtspsrc`.
    pub protocols: &'static str,
    pub latency_ms: u32,
}

/// A connection, made or in the making.
pub struct Source {
    bin: gst::Bin,
    pipeline: gst::Pipeline,
    retired: Arc<AtomicBool>,
}

impl Source {
    /// Begins to connect. What becomes of it is told on the pipeline's bus.
    pub fn start(
        entry: &Entry,
        connection: &Connection,
        pipeline: &gst::Pipeline,
        tail: &gst::Pad,
    ) -> Result<Self, String> {
        let bin = build(entry, connection)?;
        let pad = bin.static_pad("src").ok_or("the source has no pad")?;
        let retired = Arc::new(AtomicBool::new(false));
        guard(&pad, &bin, &retired);
        pipeline.add(&bin).map_err(|error| error.to_string())?;
        // From here on it is stopped like any other, whatever fails.
        let source = Self { bin, pipeline: pipeline.clone(), retired };
        let started = match pad.link(tail) {
            Ok(_) => source.bin.sync_state_with_parent().map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match started {
            Ok(()) => Ok(source),
            Err(error) => {
                source.stop();
                Err(format!("the source does not start: {error}"))
            }
        }
    }

    /// Whether the message is about this connection.
    pub fn posted(&self, message: &gst::Message) -> bool {
        message.src().is_some_and(|object| *object == self.bin || object.has_as_ancestor(&self.bin))
    }

    /// Hangs up. Takes as long as `rtspsrc` takes to say goodbye, a tenth of a second with a camera that is
    /// gone.
    pub fn stop(self) {
        self.retired.store(true, Ordering::Release);
        // Neither fails for an element of this pipeline that goes down.
        let _ = self.bin.set_state(gst::State::Null);
        let _ = self.pipeline.remove(&self.bin);
    }
}

fn build(entry: &Entry, connection: &Connection) -> Result<gst::Bin, String> {
    let rtsp = make("rtspsrc")?;
    rtsp.set_property("location", entry.address.uri());
    if let Some(credentials) = &entry.address.credentials {
        rtsp.set_property("user-id", &credentials.user);
        rtsp.set_property("user-pw", &credentials.password);
    }
    rtsp.set_property_from_str("protocols", connection.protocols);
    rtsp.set_property("latency", connection.latency_ms);
    select_video(&rtsp);

    // Any encoding that GStreamer knows, with the best-ranked decoder, which is the hardware's where there is
    // one.
    let decoder = make("decodebin3")?;
    // Passes on what the detector reads as it is; it is there for the rest, such as H.265 with 10 bits a
    // sample.
    let convert = make("videoconvert")?;

    // It settles its changes of state by itself: a pipeline that heard of them would start its clock anew
    // each time.
    let bin = gst::Bin::builder().name(format!("{}:source", entry.name)).async_handling(true).build();
    bin.connect_deep_element_added(|_, _, element| {
        if element.has_property_with_type("max-threads", i32::static_type()) {
            element.set_property("max-threads", DECODER_THREADS);
        }
    });
    bin.add_many([&rtsp, &decoder, &convert]).map_err(|error| error.to_string())?;
    link_when_added(&rtsp, &decoder);
    link_when_added(&decoder, &convert);
    let inner = convert.static_pad("src").ok_or("videoconvert has no source pad")?;
    let pad =
        gst::GhostPad::builder_with_target(&inner).map_err(|error| error.to_string())?.name("src").build();
    bin.add_pad(&pad).map_err(|error| error.to_string())?;
    Ok(bin)
}

/// The first video stream of the camera; sound, metadata and a second view are not even asked for.
fn select_video(rtsp: &gst::Element) {
    // By number, as the question is asked again when UDP fails and TCP is tried.
    let chosen = OnceLock::new();
    rtsp.connect("select-stream", false, move |values| {
        let number = values.get(1)?.get::<u32>().ok()?;
        let caps = values.get(2)?.get::<gst::Caps>().ok()?;
        let is_video = caps.structure(0)?.get::<&str>("media") == Ok("video");
        Some((is_video && *chosen.get_or_init(|| number) == number).to_value())
    });
}

/// Links the first source pad that `from` gets; `rtspsrc` and the decoder make one for each stream they are
/// to give.
fn link_when_added(from: &gst::Element, to: &gst::Element) {
    let to = to.downgrade();
    from.connect_pad_added(move |from, pad| {
        let sink = to.upgrade().and_then(|to| to.static_pad("sink"));
        if let Some(sink) = sink.filter(|sink| !sink.is_linked() && pad.direction() == gst::PadDirection::Src)
            && let Err(error) = pad.link(&sink)
        {
            gst::element_error!(from, gst::StreamError::Format, ("its stream is no video: {error}"));
        }
    });
}

/// Keeps from the tail what would end or flush it, and all that comes after the connection was given up.
fn guard(pad: &gst::Pad, bin: &gst::Bin, retired: &Arc<AtomicBool>) {
    let (bin, retired) = (bin.downgrade(), retired.clone());
    let kinds = gst::PadProbeType::DATA_DOWNSTREAM | gst::PadProbeType::EVENT_FLUSH;
    pad.add_probe(kinds, move |_, info| {
        let passes = match info.event().map(|event| event.view()) {
            Some(gst::EventView::Eos(_)) => {
                if let Some(bin) = bin.upgrade() {
                    tell(&bin, ENDED);
                }
                false
            }
            Some(gst::EventView::FlushStart(_) | gst::EventView::FlushStop(_)) => false,
            Some(gst::EventView::Segment(segment)) => {
                let continued = continued(segment);
                info.data = Some(gst::PadProbeData::Event(continued));
                true
            }
            _ => true,
        };
        match info.data {
            _ if passes && !retired.load(Ordering::Acquire) => gst::PadProbeReturn::Ok,
            // GStreamer complains of an event that is dropped by Rust: it would drop it as well.
            Some(gst::PadProbeData::Event(_)) => gst::PadProbeReturn::Handled,
            _ => gst::PadProbeReturn::Drop,
        }
    });
}

/// `rtspsrc` counts stream time from 0 in every connection. In the records it shall go on: it is made the
/// pipeline's running time, which began when the camera was added.
fn continued(event: &gst::event::Segment) -> gst::Event {
    let mut segment = event.segment().clone();
    if let Some(segment) = segment.downcast_mut::<gst::ClockTime>() {
        segment.set_time(segment.base());
    }
    gst::event::Segment::builder(&segment).seqnum(event.seqnum()).build()
}

/// A word to whoever reads the pipeline's bus.
pub fn tell(element: &impl IsA<gst::Element>, word: &str) {
    let message =
        gst::message::Application::builder(gst::Structure::new_empty(word)).src(element.as_ref()).build();
    // Fails only where nobody listens any more.
    let _ = element.post_message(message);
}

fn make(factory: &str) -> Result<gst::Element, String> {
    gst::ElementFactory::make(factory).build().map_err(|error: gst::glib::BoolError| {
        format!("{}: install GStreamer's plugins (pipelines/setup.sh does)", error.message)
    })
}
