//! The GObject: properties, pads, state changes, and what the two threads share that meet at the in-flight FIFO.
//!
//! The streaming thread takes frames in ([`super::intake`]), the source pad's task hands them out
//! ([`super::outlet`]). No lock is held while either waits for the engine, for room or for a peer, with one
//! exception: `intake` belongs to the streaming thread and is only touched under the sink pad's stream lock.
//!
//! Lock order: `intake` → `session` → `settings` → `tuning`; `switch` → `session`; the small ones
//! (`stats`, `ledger`, `last_report`, `last_reduced`, those of the FIFO, of `live` and of `pressure`) are leaves, but that
//! the history's is taken with a ticket's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Instant;

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use once_cell::sync::Lazy;
use parking_lot::Mutex;

use super::figures::Shown;
use super::inflight::Inflight;
use super::intake::Intake;
use super::live::{self, Live};
use super::negotiation;
use super::pressure::Pressure;
use super::recent;
use super::session::{Session, Tuning};
use super::settings::{self, Settings};
use super::stats::Stats;
use crate::batch::ticket::Reduced;
use crate::engine::cache::{Cache, Note, place};
use crate::memory::pool::Ledger;

pub(super) static CAT: Lazy<gst::DebugCategory> = Lazy::new(|| {
    gst::DebugCategory::new("yolodetect", gst::DebugColorFlags::empty(), Some("YOLO detection element"))
});

/// Elements of this process, whatever their state: those that are not started yet will want an engine too.
static DETECTORS: AtomicUsize = AtomicUsize::new(0);

pub struct YoloDetect {
    pub(super) sinkpad: gst::Pad,
    pub(super) srcpad: gst::Pad,
    pub(super) settings: Mutex<Settings>,
    /// `None` while stopped.
    pub(super) session: Mutex<Option<Arc<Session>>>,
    /// Follows from the settings. Belongs to the streaming thread, as `intake` does.
    pub(super) tuning: Mutex<Option<Arc<Tuning>>>,
    /// The settings changed since `tuning` was worked out.
    pub(super) retune: AtomicBool,
    pub(super) intake: Mutex<Intake>,
    pub(super) inflight: Arc<Inflight>,
    /// Held while flow and task are started or stopped together, or one thread could start what another has just
    /// stopped. Never while waiting for the task.
    pub(super) switch: Mutex<()>,
    pub(super) stats: Mutex<Stats>,
    /// Of the pools that upstream was offered since the start.
    pub(super) ledger: Mutex<Arc<Ledger>>,
    pub(super) live: Live,
    pub(super) failures: AtomicU32,
    /// The split batch that was told last.
    pub(super) last_reduced: Mutex<Option<Reduced>>,
    /// Changes of the engine's device that this element has told.
    pub(super) device_seen: AtomicU32,
    pub(super) last_report: Mutex<Option<Instant>>,
    /// While started.
    shown: Mutex<Option<Shown>>,
}

impl Drop for YoloDetect {
    fn drop(&mut self) {
        DETECTORS.fetch_sub(1, Ordering::Relaxed);
    }
}

#[glib::object_subclass]
impl ObjectSubclass for YoloDetect {
    const NAME: &'static str = "GstYoloDetect";
    type Type = super::YoloDetect;
    type ParentType = gst::Element;

    fn with_class(class: &Self::Class) -> Self {
        let template = |name| class.pad_template(name).expect("template registered below");
        let flags = gst::PadFlags::PROXY_CAPS | gst::PadFlags::PROXY_SCHEDULING;
        let sinkpad = gst::Pad::builder_from_template(&template("sink"))
            .chain_function(|pad, parent, buffer| {
                Self::catch_panic_pad_function(
                    parent,
                    || Err(gst::FlowError::Error),
                    |this| this.chain(pad, buffer),
                )
            })
            .event_function(|pad, parent, event| {
                Self::catch_panic_pad_function(parent, || false, |this| this.sink_event(pad, event))
            })
            .query_function(|pad, parent, query| {
                Self::catch_panic_pad_function(parent, || false, |this| this.sink_query(pad, query))
            })
            .flags(flags | gst::PadFlags::PROXY_ALLOCATION)
            .build();
        let srcpad = gst::Pad::builder_from_template(&template("src"))
            .event_function(|pad, parent, event| {
                Self::catch_panic_pad_function(parent, || false, |this| this.src_event(pad, event))
            })
            .query_function(|pad, parent, query| {
                Self::catch_panic_pad_function(parent, || false, |this| this.src_query(pad, query))
            })
            .activatemode_function(|pad, parent, mode, active| {
                Self::catch_panic_pad_function(
                    parent,
                    || Err(gst::loggable_error!(CAT, "panic while activating")),
                    |this| this.activate_src(pad, mode, active),
                )
            })
            .flags(flags)
            .build();
        DETECTORS.fetch_add(1, Ordering::Relaxed);
        Self {
            sinkpad,
            srcpad,
            settings: Default::default(),
            session: Default::default(),
            tuning: Default::default(),
            retune: Default::default(),
            intake: Default::default(),
            inflight: Default::default(),
            switch: Default::default(),
            stats: Default::default(),
            ledger: Default::default(),
            live: Default::default(),
            failures: Default::default(),
            last_reduced: Default::default(),
            device_seen: AtomicU32::new(0),
            last_report: Default::default(),
            shown: Default::default(),
        }
    }
}

impl ObjectImpl for YoloDetect {
    fn properties() -> &'static [glib::ParamSpec] {
        settings::param_specs()
    }

    fn signals() -> &'static [glib::subclass::Signal] {
        recent::signals()
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        // Let go of last: without it an engine may end, which takes its time.
        let session = self.session();
        let mut settings = self.settings.lock();
        settings.set(pspec.name(), value);
        if let Some(session) = &session {
            session.pressure.follow(&settings.memory);
        }
        drop(settings);
        self.retune.store(true, Ordering::Release);
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        match pspec.name() {
            "active-device" => {
                let session = self.session.lock();
                session.as_ref().map(|session| session.stream.spec().device.name().to_string()).to_value()
            }
            "stats" => self.stats_structure("stats").to_value(),
            name => self.settings.lock().get(name).unwrap_or_else(|| pspec.default_value().clone()),
        }
    }

    fn constructed(&self) {
        self.parent_constructed();
        let obj = self.obj();
        obj.add_pad(&self.sinkpad).expect("a new element has no pad of this name");
        obj.add_pad(&self.srcpad).expect("a new element has no pad of this name");
    }
}

impl GstObjectImpl for YoloDetect {}

impl ElementImpl for YoloDetect {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: Lazy<gst::subclass::ElementMetadata> = Lazy::new(|| {
            gst::subclass::ElementMetadata::new(
                "YOLO object detector",
                "Filter/Analyzer/Video",
                "Detects objects with a YOLO model; all elements with the same model share one ONNX Runtime session",
                env!("CARGO_PKG_AUTHORS"),
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: Lazy<Vec<gst::PadTemplate>> = Lazy::new(|| {
            [("sink", gst::PadDirection::Sink), ("src", gst::PadDirection::Src)]
                .into_iter()
                .map(|(name, direction)| {
                    let caps = negotiation::template_caps();
                    gst::PadTemplate::new(name, direction, gst::PadPresence::Always, caps)
                        .expect("valid template")
                })
                .collect()
        });
        &TEMPLATES
    }

    fn change_state(
        &self,
        transition: gst::StateChange,
    ) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        match transition {
            gst::StateChange::ReadyToPaused => self.open()?,
            gst::StateChange::PausedToReady => self.stop_flow(),
            _ => (),
        }
        let outcome = self.parent_change_state(transition);
        let failed = transition == gst::StateChange::ReadyToPaused && outcome.is_err();
        if failed {
            // Pads may be active all the same.
            self.stop_flow();
        }
        if failed || transition == gst::StateChange::PausedToReady {
            self.close();
        }
        outcome
    }
}

/// Starting and stopping.
impl YoloDetect {
    fn open(&self) -> Result<(), gst::StateChangeError> {
        let settings = self.settings.lock().clone();
        // Before the model is loaded, which takes longer.
        let shown =
            Shown::new(&self.obj(), settings.memory.metrics_address.as_deref()).map_err(|reason| {
                gst::element_imp_error!(self, gst::ResourceError::Settings, ("{reason}"));
                gst::StateChangeError
            })?;
        let detectors = DETECTORS.load(Ordering::Relaxed);
        let name = self.obj().name();
        let pressure = Pressure::new(&settings.memory, &name, Arc::downgrade(&self.inflight));
        let session =
            Session::open(&settings, &name, detectors, pressure, self.cache(&settings)).map_err(|error| {
                self.post_engine_error(&error);
                gst::StateChangeError
            })?;
        if let Some(warning) = session.batch_warning(&settings) {
            gst::element_imp_warning!(self, gst::LibraryError::Settings, ("{warning}"));
        }
        if session.kinds == Default::default() {
            gst::element_imp_warning!(
                self,
                gst::LibraryError::Settings,
                ("analytics-meta and roi-meta are both off: objects are counted, but no boxes are on the buffers; \
                  set roi-meta=on")
            );
        }
        let spec = session.stream.spec();
        gst::info!(
            CAT,
            imp = self,
            "{} on {}: {} callers, input {:?}, {:?}, classes {:?}, warm run {:?}, {} bytes",
            spec.file.display(),
            spec.device.name(),
            spec.callers,
            spec.input_size,
            spec.layout.head,
            spec.layout.classes,
            spec.warm_run,
            spec.loaded_bytes
        );
        self.live.reset(live::needed(spec.warm_run, settings.batch_delay.into()));
        *self.stats.lock() = Stats::default();
        let ledger = Arc::<Ledger>::default();
        *self.ledger.lock() = ledger.clone();
        *self.intake.lock() = Intake::new(&self.obj().name(), ledger);
        *self.tuning.lock() = None;
        *self.last_report.lock() = None;
        self.failures.store(0, Ordering::Relaxed);
        *self.last_reduced.lock() = None;
        self.device_seen.store(0, Ordering::Relaxed);
        let session = Arc::new(session);
        *self.session.lock() = Some(session.clone());
        self.report_device(&session);
        // What was set while the model was loading.
        session.pressure.follow(&self.settings.lock().memory);
        *self.shown.lock() = Some(shown);
        Ok(())
    }

    /// Where optimised models are kept. What is told of that comes from other threads, too.
    fn cache(&self, settings: &Settings) -> Option<Cache> {
        let folder = place::folder(settings.model_cache.as_deref())?;
        let (weak, asked_for) = (self.obj().downgrade(), settings.model_cache.is_some());
        let tell = move |note| {
            let Some(element) = weak.upgrade() else { return };
            match note {
                Note::Failed(why) if asked_for => {
                    gst::element_warning!(element, gst::LibraryError::Settings, ("{why}"));
                }
                Note::Failed(why) | Note::Fine(why) => gst::info!(CAT, obj = element, "{why}"),
            }
        };
        Some(Cache { folder, tell: Arc::new(tell) })
    }

    fn close(&self) {
        let (session, shown) = (self.session.lock().take(), self.shown.lock().take());
        if let Some(session) = &session {
            session.keep_engine_for(self.settings.lock().memory.model_keep_alive.into());
        }
        *self.intake.lock() = Intake::default();
        *self.tuning.lock() = None;
        // The last session of a model joins the engine's thread, the last user of a metrics server that one's: not
        // with a lock held.
        drop((session, shown));
    }

    pub(super) fn session(&self) -> Option<Arc<Session>> {
        self.session.lock().clone()
    }

    fn activate_src(
        &self,
        pad: &gst::Pad,
        mode: gst::PadMode,
        active: bool,
    ) -> Result<(), gst::LoggableError> {
        if mode != gst::PadMode::Push {
            return Err(gst::loggable_error!(CAT, "only push mode is supported"));
        }
        if active {
            let _switch = self.switch.lock();
            // Of an earlier life.
            drop(self.inflight.take_kept());
            self.start_flow().map_err(|error| gst::loggable_error!(CAT, "no task: {}", error))
        } else {
            self.stop_flow();
            pad.stop_task().map_err(|error| gst::loggable_error!(CAT, "the task does not stop: {}", error))
        }
    }

    /// Flow and task together; `switch` is held.
    pub(super) fn start_flow(&self) -> Result<(), glib::BoolError> {
        if let Some(session) = self.session() {
            session.stream.set_flushing(false);
        }
        self.inflight.start();
        self.start_task()
    }

    /// Frees everyone who waits in here, and refuses what comes.
    pub(super) fn stop_flow(&self) {
        let _switch = self.switch.lock();
        self.inflight.stop();
        if let Some(session) = self.session() {
            session.stream.set_flushing(true);
        }
    }

    /// Goes on after a break that is mended.
    pub(super) fn resume_flow(&self, mended: impl FnOnce(gst::FlowError, bool) -> bool) {
        let _switch = self.switch.lock();
        if self.srcpad.is_active()
            && self.inflight.resume(mended)
            && let Err(error) = self.start_task()
        {
            gst::warning!(CAT, imp = self, "no task after a break: {error}");
        }
    }

    fn start_task(&self) -> Result<(), glib::BoolError> {
        let weak = self.obj().downgrade();
        self.srcpad.start_task(move || {
            if let Some(element) = weak.upgrade() {
                element.imp().step();
            }
        })
    }
}
