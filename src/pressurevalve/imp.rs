//! The GObject: properties, levels, and what becomes of buffers and events.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use gst::glib;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::base_transform::BaseTransformMode;
use gst_base::subclass::prelude::*;
use parking_lot::Mutex;

use super::gate::{Gate, Shut, Unit, Verdict};
use super::{Mode, ShutLevel};
use crate::memory::monitor::{self, Watch};
use crate::memory::pressure::{Level, Thresholds};
use crate::pressure_event;

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("pressurevalve", gst::DebugColorFlags::empty(), Some("Valve for memory pressure"))
});

/// How often memory is looked at where nobody wants it more often.
const INTERVAL: Duration = Duration::from_secs(1);
/// After so long without a buffer downstream is told that there is none: well before the queues (of 1 s) of a muxer's other
/// streams are full, since whoever fills these may be the one who feeds this stream.
const SILENCE: gst::ClockTime = gst::ClockTime::from_mseconds(200);

#[derive(Clone, Copy, Debug)]
struct Settings {
    level: ShutLevel,
    mode: Mode,
    thin: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { level: ShutLevel::default(), mode: Mode::default(), thin: 4 }
    }
}

/// Of the streaming thread.
#[derive(Default)]
struct State {
    gate: Gate,
    form: Form,
    /// When the latest buffer, passed or not, is shown.
    latest: Option<gst::ClockTime>,
    /// Up to when downstream has heard of the stream; `None` while it has heard nothing.
    heard: Option<gst::ClockTime>,
    /// A key frame was asked for.
    asked: bool,
}

/// What a buffer of the stream is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Form {
    /// Something by itself: a frame, a packet, headers.
    #[default]
    Unit,
    /// An encoded frame, headers and all: a flag for headers says that it has some, not that it is nothing else.
    Frame,
    /// Part of a frame; those of the same timestamp are of one.
    Part,
    /// A picture that is not encoded.
    Picture,
}

impl Form {
    fn of(caps: &gst::CapsRef) -> Self {
        let Some(fields) = caps.structure(0) else { return Form::Unit };
        match (fields.name().as_str(), fields.get::<&str>("alignment")) {
            ("video/x-raw", _) => Form::Picture,
            ("application/x-rtp", _) | (_, Ok("nal" | "obu")) => Form::Part,
            (_, Ok("au" | "frame" | "tu")) => Form::Frame,
            _ => Form::Unit,
        }
    }
}

#[derive(Default)]
pub struct PressureValve {
    settings: Mutex<Settings>,
    state: Mutex<State>,
    watch: Mutex<Option<Watch>>,
    /// A [`Level`], as events on this stream tell it that are not of this process.
    told: AtomicU8,
    active: AtomicBool,
    dropped: AtomicU64,
}

#[glib::object_subclass]
impl ObjectSubclass for PressureValve {
    const NAME: &'static str = "GstPressureValve";
    type Type = super::PressureValve;
    type ParentType = gst_base::BaseTransform;
}

impl ObjectImpl for PressureValve {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            let default = Settings::default();
            vec![
                glib::ParamSpecEnum::builder_with_default("level", default.level)
                    .nick("Level")
                    .blurb("Level of memory pressure from which on the valve is shut")
                    .mutable_playing()
                    .build(),
                glib::ParamSpecEnum::builder_with_default("mode", default.mode)
                    .nick("Mode")
                    .blurb("What passes while it is shut")
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("thin")
                    .nick("Thin")
                    .blurb("With mode=thin one frame out of so many passes, the first one first")
                    .minimum(1)
                    .default_value(default.thin)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecBoolean::builder("active")
                    .nick("Active")
                    .blurb("The valve is shut, or waits for a key frame to open, as of the latest buffer")
                    .read_only()
                    .build(),
                glib::ParamSpecUInt64::builder("dropped")
                    .nick("Dropped")
                    .blurb("Buffers held back since the element was started")
                    .read_only()
                    .build(),
            ]
        });
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let mut settings = self.settings.lock();
        let before = *settings;
        // GObject has checked the value's type and range.
        match pspec.name() {
            "level" => settings.level = value.get().unwrap_or(before.level),
            "mode" => settings.mode = value.get().unwrap_or(before.mode),
            "thin" => settings.thin = value.get().unwrap_or(before.thin),
            name => gst::warning!(CAT, imp = self, "No property {name}"),
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        let settings = *self.settings.lock();
        match pspec.name() {
            "level" => settings.level.to_value(),
            "mode" => settings.mode.to_value(),
            "thin" => settings.thin.to_value(),
            "active" => self.active.load(Ordering::Relaxed).to_value(),
            _ => self.dropped.load(Ordering::Relaxed).to_value(),
        }
    }

    fn constructed(&self) {
        self.parent_constructed();
        // Also where a stream has no caps.
        self.obj().set_passthrough(true);
    }
}

impl GstObjectImpl for PressureValve {}

impl ElementImpl for PressureValve {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "Valve for memory pressure",
                "Filter",
                "Stops or thins a branch while memory is short, and opens again by itself",
                env!("CARGO_PKG_AUTHORS"),
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            [("sink", gst::PadDirection::Sink), ("src", gst::PadDirection::Src)]
                .into_iter()
                .filter_map(|(name, direction)| {
                    gst::PadTemplate::new(name, direction, gst::PadPresence::Always, &gst::Caps::new_any())
                        .ok()
                })
                .collect()
        });
        &TEMPLATES
    }
}

impl BaseTransformImpl for PressureValve {
    const MODE: BaseTransformMode = BaseTransformMode::AlwaysInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = true;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = true;

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        self.dropped.store(0, Ordering::Relaxed);
        // It is no reason for anybody else to give memory back.
        let thresholds = Thresholds { react: false, ..Thresholds::default() };
        *self.watch.lock() = Some(monitor::watch(thresholds, INTERVAL, || ()));
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        let watch = self.watch.lock().take();
        drop(watch);
        *self.state.lock() = State::default();
        self.told.store(Level::Nominal as u8, Ordering::Relaxed);
        self.set_active(false);
        Ok(())
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        match event.view() {
            gst::EventView::FlushStop(_) | gst::EventView::StreamStart(_) => {
                self.told.store(Level::Nominal as u8, Ordering::Relaxed);
                self.state.lock().heard = None;
            }
            gst::EventView::Segment(_) => self.state.lock().heard = None,
            gst::EventView::Caps(caps) => self.state.lock().form = Form::of(caps.caps()),
            gst::EventView::CustomDownstreamSticky(_) => {
                if let Some(level) = pressure_event::level_from_elsewhere(&event) {
                    self.told.store(level as u8, Ordering::Relaxed);
                }
            }
            _ => (),
        }
        self.parent_sink_event(event)
    }

    /// A buffer that is dropped has the base class mark the next one as discontinuous.
    fn transform_ip_passthrough(&self, buffer: &gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        let settings = *self.settings.lock();
        let level = Level::from_number(self.told.load(Ordering::Relaxed)).max(monitor::level());
        let shut = (level >= settings.level.level()).then_some(match settings.mode {
            Mode::Drop => Shut::Nothing,
            Mode::KeyframesOnly => Shut::KeyUnits,
            Mode::Thin => Shut::OneIn(settings.thin),
        });
        let mut state = self.state.lock();
        let unit = state.unit(buffer);
        let verdict = state.gate.judge(unit, shut);
        let active = state.gate.is_active(shut.is_some());
        let awaiting = state.gate.is_active(false);
        let ask = !std::mem::replace(&mut state.asked, awaiting) && awaiting;
        let silent = match verdict {
            Verdict::Pass => {
                state.heard = buffer.pts().or(state.heard);
                None
            }
            Verdict::Drop | Verdict::AwaitKey => state.silence(buffer.pts()),
        };
        drop(state);

        self.set_active(active);
        if ask {
            let event = gst_video::UpstreamForceKeyUnitEvent::builder().all_headers(true).build();
            self.obj().sink_pad().push_event(event);
        }
        if verdict == Verdict::Pass {
            return Ok(gst::FlowSuccess::Ok);
        }
        self.dropped.fetch_add(1, Ordering::Relaxed);
        if let Some(from) = silent {
            let gap = gst::event::Gap::builder(from).duration(buffer.duration()).build();
            self.obj().src_pad().push_event(gap);
        }
        Ok(gst_base::BASE_TRANSFORM_FLOW_DROPPED)
    }
}

impl PressureValve {
    fn set_active(&self, active: bool) {
        if self.active.swap(active, Ordering::Relaxed) != active {
            gst::info!(CAT, imp = self, "{}", if active { "shut" } else { "open" });
            self.obj().notify("active");
        }
    }
}

impl State {
    fn unit(&mut self, buffer: &gst::BufferRef) -> Unit {
        let flags = buffer.flags();
        let before = std::mem::replace(&mut self.latest, buffer.pts());
        Unit {
            delta: flags.contains(gst::BufferFlags::DELTA_UNIT),
            header: self.form != Form::Frame && flags.contains(gst::BufferFlags::HEADER),
            continues: self.form == Form::Part && before.is_some() && before == self.latest,
            pts: buffer.pts().map(gst::ClockTime::nseconds),
        }
    }

    /// From when on downstream is to be told that there is nothing: at once where it has heard nothing so far, so that a
    /// sink does not wait for its first buffer; then now and again, so that a muxer goes on with its other streams. Not
    /// for pictures: an encoder keeps all that it is told until it has the next frame.
    fn silence(&mut self, pts: Option<gst::ClockTime>) -> Option<gst::ClockTime> {
        let pts = pts?;
        let due = match self.heard {
            None => true,
            Some(heard) => self.form != Form::Picture && pts >= heard.saturating_add(SILENCE),
        };
        if !due {
            return None;
        }
        self.heard = Some(pts);
        Some(pts)
    }
}
