//! What `yolodetect` says of itself: latency, statistics, errors.

use std::sync::atomic::Ordering;
use std::time::Instant;

use gst::prelude::*;
use gst::subclass::prelude::*;

use super::imp::YoloDetect;
use super::negotiation;
use crate::batch::ticket::RunReport;
use crate::engine::{EngineError, EngineErrorKind};

impl YoloDetect {
    pub(super) fn src_query(&self, pad: &gst::Pad, query: &mut gst::QueryRef) -> bool {
        if let gst::QueryViewMut::Latency(query) = query.view_mut() {
            let answered = self.sinkpad.peer_query(query);
            let live = answered && query.result().0;
            if answered {
                self.live.store(live, Ordering::Relaxed);
            }
            if live {
                let own = gst::ClockTime::from_nseconds(self.latency.load(Ordering::Relaxed));
                negotiation::add_latency(query, own);
            }
            return answered;
        }
        gst::Pad::query_default(pad, Some(&*self.obj()), query)
    }

    /// A live pipeline must know when results take longer than was announced.
    pub(super) fn watch_latency(&self, report: &RunReport) {
        if !self.live.load(Ordering::Relaxed) {
            return;
        }
        let taken = (report.queued + report.inference + report.decode).as_nanos() as u64;
        let announced = self.latency.load(Ordering::Relaxed);
        if taken > announced {
            // A quarter of air, so that noise does not have the pipeline reconfigured again and again.
            self.latency.store(taken + taken / 4, Ordering::Relaxed);
            let _ = self.obj().post_message(gst::message::Latency::builder().src(&*self.obj()).build());
        }
    }

    pub(super) fn stats_structure(&self, name: &str) -> gst::Structure {
        let builder = gst::Structure::builder(name).field("queue-depth", self.inflight.frames() as u32);
        let builder = self.stats.lock().describe(builder);
        let Some(session) = self.session() else { return builder.build() };
        let (spec, engine) = (session.stream.spec(), session.stream.batcher().stats());
        let engine = gst::Structure::builder("engine")
            .field("model", spec.file.to_string_lossy().into_owned())
            .field("device", spec.device.as_str())
            .field("streams", engine.streams as u32)
            .field("bytes", spec.loaded_bytes)
            .field("batches", engine.batches)
            .field("frames", engine.frames)
            .field("slots", engine.slots as u32)
            .field("waiting", engine.waiting as u32)
            .build();
        builder.field("engine", engine).build()
    }

    /// Posts the statistics when it is time to, or in any case where they are wanted at all and this is the `end`.
    pub(super) fn report_stats(&self, end: bool) {
        let interval = self.settings.lock().stats_interval;
        if interval.is_zero() {
            return;
        }
        let now = Instant::now();
        {
            let mut last = self.last_report.lock();
            match *last {
                Some(then) if !end && now.duration_since(then) < interval.into() => return,
                _ => *last = Some(now),
            }
        }
        let structure = self.stats_structure("yolodetect-stats");
        let message = gst::message::Element::builder(structure).src(&*self.obj()).build();
        let _ = self.obj().post_message(message);
    }

    pub(super) fn post_engine_error(&self, error: &EngineError) {
        let EngineError { kind, message, detail } = error;
        match kind {
            EngineErrorKind::Library => {
                gst::element_imp_error!(self, gst::LibraryError::Init, ("{message}"), ["{detail}"])
            }
            EngineErrorKind::ModelMissing => {
                gst::element_imp_error!(self, gst::ResourceError::NotFound, ("{message}"), ["{detail}"])
            }
            EngineErrorKind::ModelUnsupported => {
                gst::element_imp_error!(self, gst::StreamError::WrongType, ("{message}"), ["{detail}"])
            }
            EngineErrorKind::Settings => {
                gst::element_imp_error!(self, gst::LibraryError::Settings, ("{message}"), ["{detail}"])
            }
            EngineErrorKind::Run => {
                gst::element_imp_error!(self, gst::LibraryError::Failed, ("{message}"), ["{detail}"])
            }
        }
    }
}
