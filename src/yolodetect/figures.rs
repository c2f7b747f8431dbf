//! What the metrics server shows of an element.

use std::sync::Arc;

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;

use crate::metrics::figures::{self, EngineFigures, Source, StreamFigures};
use crate::metrics::{address, server::Server};

/// Figures are shown, and the server is there, while this lives.
pub struct Shown {
    _source: Arc<dyn Source>,
    _server: Option<Server>,
}

impl Shown {
    /// The element's figures are shown wherever there is a server, whether or not it names an `address` itself.
    ///
    /// # Errors
    /// A text for the user: the address makes no sense, or cannot be had.
    pub fn new(element: &super::YoloDetect, address: Option<&str>) -> Result<Self, String> {
        let server = address.map(serve).transpose()?;
        let source: Arc<dyn Source> = Arc::new(Element(element.downgrade()));
        figures::show(&element.name(), Arc::downgrade(&source));
        Ok(Self { _source: source, _server: server })
    }
}

fn serve(text: &str) -> Result<Server, String> {
    let address = address::parse(text)?;
    Server::start(address).map_err(|error| {
        format!("metrics-address={text}: no server can be started at {address}: {error}; give another port or none")
    })
}

struct Element(glib::WeakRef<super::YoloDetect>);

impl Source for Element {
    fn figures(&self) -> Option<StreamFigures> {
        let element = self.0.upgrade()?;
        let imp = element.imp();
        let session = imp.session()?;
        let (batcher, spec) = (session.stream.batcher(), session.stream.spec());
        let stats = batcher.stats();
        let engine = EngineFigures {
            number: batcher.number(),
            model: spec.file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            device: spec.device.name().to_string(),
            streams: stats.streams as u64,
            batches: stats.batches,
            frames: stats.frames,
            slots: stats.slots as u64,
            waiting: stats.waiting as u64,
            callers: spec.callers as u64,
            batch_limit: stats.batch_limit as u64,
            bytes: spec.loaded_bytes,
            last_run: batcher.last_run().as_secs_f64(),
        };
        let queue_depth = imp.inflight.frames() as u64;
        let ledger = imp.ledger.lock().clone();
        let stats = imp.stats.lock();
        Some(StreamFigures { queue_depth, engine, pool: stats.pool(&ledger), ..stats.figures() })
    }
}
