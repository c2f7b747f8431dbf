//! What `yolodetect` says of itself: latency, statistics, errors.

use std::time::Instant;

use gst::prelude::*;
use gst::subclass::prelude::*;

use super::imp::YoloDetect;
use super::live;
use super::negotiation;
use super::session::Session;
use crate::batch::ticket::Reduced;
use crate::engine::active::Change;
use crate::engine::gpu::budget::GpuUse;
use crate::engine::{EngineError, EngineErrorKind, registry};
use crate::memory;
use crate::memory::pool::PoolStats;

fn pool_structure(pool: &PoolStats) -> gst::Structure {
    gst::Structure::builder("pool")
        .field("requests", pool.requests)
        .field("hits", pool.hits)
        .field_if_some("efficiency", pool.efficiency())
        .field("allocated", pool.allocated)
        .field("available", pool.available)
        .field("in-use", pool.in_use)
        .field("peak", pool.peak)
        .field("bytes", pool.bytes)
        .field("misses", pool.misses)
        .field("own", pool.own)
        .build()
}

impl YoloDetect {
    pub(super) fn src_query(&self, pad: &gst::Pad, query: &mut gst::QueryRef) -> bool {
        if let gst::QueryViewMut::Latency(query) = query.view_mut() {
            let answered = self.sinkpad.peer_query(query);
            let live = answered && query.result().0;
            if live {
                // That it is not may only mean that there is no source yet.
                self.live.learn(true);
                let own = self.live.announced().try_into().unwrap_or(gst::ClockTime::MAX);
                negotiation::add_latency(query, own);
            }
            return answered;
        }
        gst::Pad::query_default(pad, Some(&*self.obj()), query)
    }

    /// A live frame could not wait for its result any more: the pipeline must know when the engine has become slower.
    pub(super) fn watch_latency(&self, session: &Session) {
        let run = session.stream.batcher().last_run();
        let delay = self.settings.lock().batch_delay;
        if self.live.missed(live::needed(run, delay.into())) {
            self.post_latency();
        }
    }

    pub(super) fn post_latency(&self) {
        // Non-live pipelines have none.
        if self.live.is() == Some(true) {
            let _ = self.obj().post_message(gst::message::Latency::builder().src(&*self.obj()).build());
        }
    }

    /// A batch with a frame of this stream ran out of memory and was run in parts.
    pub(super) fn report_reduced(&self, session: &Session, reduced: Reduced) {
        if self.last_reduced.lock().replace(reduced) == Some(reduced) {
            return;
        }
        let structure = gst::Structure::builder("yolodetect-batch-reduced")
            .field("model", session.stream.spec().file.to_string_lossy().into_owned())
            .field("batch", reduced.frames)
            .field("limit", reduced.limit)
            .build();
        let _ = self.obj().post_message(gst::message::Element::builder(structure).src(&*self.obj()).build());
    }

    /// The engine runs elsewhere than was asked for, or than before: everybody says so on the bus, and one of them warns.
    pub(super) fn report_device(&self, session: &Session) {
        let Some(change) = session.device_news(&self.device_seen) else { return };
        let Change { device, reason, first } = change;
        if first {
            gst::element_imp_warning!(self, gst::LibraryError::Init, ("{reason}"));
        }
        self.obj().notify("active-device");
        let structure = gst::Structure::builder("yolodetect-device-changed")
            .field("model", session.stream.spec().file.to_string_lossy().into_owned())
            .field("device", &*device)
            .field("reason", &*reason)
            .build();
        let _ = self.obj().post_message(gst::message::Element::builder(structure).src(&*self.obj()).build());
    }

    pub(super) fn stats_structure(&self, name: &str) -> gst::Structure {
        let builder = gst::Structure::builder(name).field("queue-depth", self.inflight.frames() as u32);
        let ledger = self.ledger.lock().clone();
        let builder = {
            let stats = self.stats.lock();
            stats.describe(builder).field("pool", pool_structure(&stats.pool(&ledger)))
        };
        let builder = builder.field("memory", memory_structure());
        let Some(session) = self.session() else { return builder.build() };
        let (spec, engine) = (session.stream.spec(), session.stream.batcher().stats());
        let gpu = engine.gpu.map(|GpuUse { context, model, arena, tensors }| {
            gst::Structure::builder("gpu")
                .field("context", context)
                .field("model", model)
                .field("arena", arena)
                .field("tensors", tensors)
                .build()
        });
        let engine = gst::Structure::builder("engine")
            .field("model", spec.file.to_string_lossy().into_owned())
            .field("device", &*spec.device.name())
            .field("streams", engine.streams as u32)
            .field("bytes", spec.loaded_bytes)
            .field("cached", spec.cached)
            .field("model-bytes", engine.held.model)
            .field("arena-bytes", engine.held.arena)
            .field("tensor-bytes", engine.held.tensors)
            .field("idle-engines", registry::idle_engines() as u32)
            .field("batches", engine.batches)
            .field("frames", engine.frames)
            .field("slots", engine.slots as u32)
            .field("waiting", engine.waiting as u32)
            .field("callers", spec.callers as u32)
            .field("batch-limit", engine.batch_limit as u32)
            .field_if_some("gpu-bytes", engine.gpu.map(|gpu| gpu.total()))
            .field_if_some("gpu", gpu)
            .build();
        let history = session.pressure.history.frames() as u64;
        builder.field("engine", engine).field("history-frames", history).build()
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
        let EngineError { kind, message, detail, .. } = error;
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
            EngineErrorKind::NoBudget => {
                gst::element_imp_error!(self, gst::ResourceError::NoSpaceLeft, ("{message}"), ["{detail}"])
            }
            EngineErrorKind::Run | EngineErrorKind::OutOfMemory | EngineErrorKind::DeviceLost => {
                gst::element_imp_error!(self, gst::LibraryError::Failed, ("{message}"), ["{detail}"])
            }
        }
    }
}

/// What the process holds of memory. Fields that nobody can tell are missing.
fn memory_structure() -> gst::Structure {
    let memory = memory::overview();
    let mut budget = gst::Structure::new_empty("budget");
    for (consumer, bytes) in memory.usage {
        budget.set(consumer.name(), bytes);
    }
    let builder = gst::Structure::builder("memory")
        .field("rss", memory.process.resident)
        .field("anonymous", memory.process.anonymous)
        .field("level", memory.level.name())
        .field_if_some("limit", memory.limit());
    let sample = memory.sample.unwrap_or_default();
    let own = sample.gpus.iter().filter_map(|gpu| gpu.own).reduce(u64::saturating_add);
    let used = sample.gpus.iter().map(|gpu| gpu.used).reduce(u64::saturating_add);
    builder
        .field("budget", budget)
        .field_if_some("heap-used", sample.heap.map(|heap| heap.used))
        .field_if_some("heap-free", sample.heap.map(|heap| heap.free))
        .field_if_some("system-available", sample.system.map(|system| system.available))
        .field_if_some("gpu-used", used)
        .field_if_some("gpu-own", own)
        .build()
}
