//! The streaming thread: takes frames in, has them preprocessed into a slot, and puts them in flight together with the
//! events and queries between them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gst::prelude::*;
use gst::subclass::prelude::*;

use super::buffers::{Arrival, Footprint, Shortage};
use super::imp::{CAT, YoloDetect};
use super::inflight::{Frame, Place};
use super::live::{self, Pace};
use super::negotiation;
use super::reader::Reader;
use super::session::{Session, Tuning};
use super::settings::{Overload, Settings};
use super::thinning::Thinning;
use crate::batch::batcher::Job;
use crate::batch::{Patience, Refused, Ticket};
use crate::engine::cuda_frames::Refusal;
use crate::memory::budget;
use crate::memory::pool::Ledger;
use crate::meta::Status;

/// What the streaming thread keeps from frame to frame.
#[derive(Default)]
pub struct Intake {
    /// `None` before any caps.
    reader: Option<Reader>,
    frames: u64,
    thinning: Thinning,
    /// Every ticket ever needed; those that nobody else holds are free.
    tickets: Vec<Arc<Ticket>>,
    pace: Pace,
    arrival: Arrival,
    /// `None` while stopped.
    footprint: Option<Footprint>,
}

impl Intake {
    /// For a new start of the element `name`.
    pub fn new(name: &str, ledger: Arc<Ledger>) -> Self {
        let footprint = Some(Footprint::new(&budget::HOST, name));
        Self { arrival: Arrival::new(ledger), footprint, ..Default::default() }
    }

    /// How many of the frames that are `wanted` in flight there is room for; see [`Footprint::depth`].
    fn depth(&mut self, wanted: usize) -> (usize, Option<Shortage>) {
        match (&mut self.footprint, &self.reader) {
            (Some(footprint), Some(reader)) => footprint.depth(wanted, reader.frame_bytes()),
            _ => (wanted, None),
        }
    }

    fn ticket(&mut self) -> Arc<Ticket> {
        // Clones are only made here, so a count of one cannot grow meanwhile.
        match self.tickets.iter().find(|ticket| Arc::strong_count(ticket) == 1) {
            Some(free) => {
                free.reset();
                free.clone()
            }
            None => {
                let ticket = Arc::new(Ticket::default());
                self.tickets.push(ticket.clone());
                ticket
            }
        }
    }
}

impl YoloDetect {
    pub(super) fn chain(
        &self,
        _pad: &gst::Pad,
        buffer: gst::Buffer,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        let session = self.session().ok_or(gst::FlowError::Flushing)?;
        let tuning = self.tuning(&session)?;
        let arrival = Instant::now();
        self.upstream_is_live();
        let place = self.inflight.reserve(self.depth(&session, &tuning))?;
        let mut intake = self.intake.lock();
        if intake.reader.is_none() {
            gst::element_imp_error!(
                self,
                gst::CoreError::Negotiation,
                ("a frame came before any caps: put a decoder or a capsfilter in front"),
                ["buffer {:?}", buffer]
            );
            return Err(gst::FlowError::NotNegotiated);
        }
        intake.arrival.look_at(&buffer);
        self.stats.lock().frame_in(&intake.arrival);
        let number = intake.frames;
        intake.frames += 1;
        self.admit(&session, &tuning, &mut intake, place, arrival, buffer, number)
    }

    /// Most frames in flight, within the budget.
    fn depth(&self, session: &Session, tuning: &Tuning) -> usize {
        let wanted = tuning.in_flight(session, &self.live);
        let (depth, shortage) = self.intake.lock().depth(wanted);
        if let Some(shortage) = shortage {
            gst::element_imp_warning!(self, gst::LibraryError::Settings, ("{shortage}"));
        }
        depth
    }

    /// Sends a frame on its way: into a slot of the next batch, or past it.
    #[expect(clippy::too_many_arguments, reason = "one call, from the function above")]
    fn admit(
        &self,
        session: &Session,
        tuning: &Tuning,
        intake: &mut Intake,
        place: Place<'_>,
        arrival: Instant,
        buffer: gst::Buffer,
        number: u64,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        let Some(reader) = &intake.reader else { return Err(gst::FlowError::NotNegotiated) };
        let size = (reader.info().width(), reader.info().height());
        let pass = |buffer, status| Frame { buffer, number, size, status, ticket: None, deadline: None };
        let pts = buffer.pts();
        let Some((interval, max_fps)) = session.pressure.allowed(tuning.interval, tuning.max_fps) else {
            return place.fill(pass(buffer, Status::Pressure));
        };
        if !intake.thinning.due(pts, interval, max_fps) {
            return place.fill(pass(buffer, Status::Interval));
        }
        let live = self.upstream_is_live();
        let skips = match tuning.overload {
            Overload::Block => false,
            Overload::Skip => true,
            Overload::Auto => live,
        };
        // A live frame leaves in time, with its result or without.
        let deadline = (skips && live).then(|| arrival + self.live.announced());
        let patience = match skips {
            false => Patience::Endless,
            true if live => self.patience(session, &mut intake.pace, pts, arrival),
            true => Patience::None,
        };
        let mut slot = match session.stream.acquire(tuning.priority, patience) {
            Ok(slot) => slot,
            Err(Refused::Busy) => return place.fill(pass(buffer, Status::Overload)),
            Err(Refused::NoRoom(error)) => {
                // As a run that failed: told once, and borne.
                let ticket = intake.ticket();
                ticket.refuse(error);
                let frame = pass(buffer, Status::Inferred);
                return place.fill(Frame { ticket: Some(ticket), deadline, ..frame });
            }
            Err(Refused::Flushing) => return Err(gst::FlowError::Flushing),
            Err(Refused::EngineLost(error)) => {
                self.post_engine_error(&error);
                return Err(gst::FlowError::Error);
            }
        };
        let start = Instant::now();
        let ticket = intake.ticket();
        let Some(reader) = &mut intake.reader else { return Err(gst::FlowError::NotNegotiated) };
        let read = reader.read(&buffer, session.stream.spec(), &mut slot);
        let letterbox = *reader.letterbox();
        if let Err(reason) = read {
            // Before the application hears of it: others' frames wait for this slot.
            drop(slot);
            gst::element_imp_error!(
                self,
                gst::StreamError::Format,
                ("frame {number} cannot be read: {reason}; the element before yolodetect makes buffers that do not \
                  fit its caps"),
                ["buffer {:?}", buffer]
            );
            return Err(gst::FlowError::Error);
        }
        self.stats.lock().preprocessed(start.elapsed());
        intake.thinning.inferred(pts, max_fps);
        slot.submit(Job {
            ticket: ticket.clone(),
            thresholds: tuning.thresholds.clone(),
            letterbox,
            batch_delay: tuning.batch_delay,
        });
        if let Ok(Some(refusal)) = read {
            // After the frame is on its way.
            self.warn_of_fetching(&refusal);
        }
        place.fill(Frame { buffer, number, size, status: Status::Inferred, ticket: Some(ticket), deadline })
    }

    fn warn_of_fetching(&self, why: &Refusal) {
        gst::element_imp_warning!(
            self,
            gst::LibraryError::Settings,
            ("frames that lie in the GPU's memory are copied to the host, where they are preprocessed: {why}")
        );
    }

    /// Works the settings out anew after a change. A change that makes no sense is told and not followed.
    fn tuning(&self, session: &Session) -> Result<Arc<Tuning>, gst::FlowError> {
        // Taken back before the settings are read: a change in between is seen the next time.
        let changed = self.retune.swap(false, Ordering::Acquire);
        if !changed && let Some(tuning) = &*self.tuning.lock() {
            return Ok(tuning.clone());
        }
        let settings = self.settings.lock().clone();
        let tuning = Tuning::new(&settings, session).or_else(|reason| {
            gst::element_imp_warning!(self, gst::LibraryError::Settings, ("{reason}; all classes are kept"));
            Tuning::new(&Settings { classes: None, ..settings }, session)
        });
        match tuning {
            Ok(tuning) => {
                let tuning = Arc::new(tuning);
                let run = session.stream.spec().warm_run;
                if self.live.announce(live::needed(run, tuning.batch_delay)) {
                    self.post_latency();
                }
                *self.tuning.lock() = Some(tuning.clone());
                Ok(tuning)
            }
            Err(reason) => {
                gst::element_imp_error!(self, gst::LibraryError::Settings, ("{reason}"));
                Err(gst::FlowError::Error)
            }
        }
    }

    fn upstream_is_live(&self) -> bool {
        self.live.is().unwrap_or_else(|| {
            let mut query = gst::query::Latency::new();
            let answered = self.sinkpad.peer_query(&mut query);
            let live = answered && query.result().0;
            gst::debug!(CAT, imp = self, "upstream is live: {live} (answered: {answered})");
            // Who cannot tell yet, such as a source that is still connecting, is asked again.
            if answered {
                self.live.learn(live);
            }
            live
        })
    }

    /// A live frame's thread may wait until the next frame is due, when that one takes over its turn: so it is the
    /// newest frame that gets a slot, and none comes later for it. No longer than was announced, either.
    fn patience(
        &self,
        session: &Session,
        pace: &mut Pace,
        pts: Option<gst::ClockTime>,
        arrival: Instant,
    ) -> Patience {
        let slack = pace.slack(pts, arrival, self.live.period());
        let run = session.stream.batcher().last_run();
        match slack.min(live::wait(run)) {
            Duration::ZERO => Patience::None,
            patience => Patience::Until(arrival + patience),
        }
    }

    pub(super) fn sink_event(&self, pad: &gst::Pad, event: gst::Event) -> bool {
        use gst::EventView;
        match event.view() {
            EventView::FlushStart(_) => {
                let forwarded = self.srcpad.push_event(event);
                self.stop_flow();
                // Waits for the task's turn to end; fails only while the pad is being deactivated, which stops it anyway.
                let _ = self.srcpad.pause_task();
                return forwarded;
            }
            EventView::FlushStop(_) => {
                let forwarded = self.srcpad.push_event(event);
                self.restart_after_flush();
                return forwarded;
            }
            EventView::Caps(caps) if !self.set_caps(caps.caps()) => return false,
            EventView::StreamStart(_) | EventView::Segment(_) => {
                if event.type_() == gst::EventType::StreamStart {
                    // Perhaps another source.
                    self.live.forget();
                }
                // What broke ended with the stream before.
                self.resume_flow(|flow, ended| ended && flow != gst::FlowError::Flushing);
            }
            EventView::Eos(_) => {
                if let Err(flow) = self.inflight.push_event(event) {
                    if flow != gst::FlowError::Flushing {
                        self.end_broken_stream(flow);
                    }
                    return false;
                }
                if let Some(session) = self.session() {
                    session.stream.hurry();
                }
                return true;
            }
            _ => (),
        }
        if event.is_serialized() {
            self.inflight.push_event(event).is_ok()
        } else {
            gst::Pad::event_default(pad, Some(&*self.obj()), event)
        }
    }

    fn restart_after_flush(&self) {
        let mut intake = self.intake.lock();
        intake.thinning = Thinning::default();
        intake.pace = Pace::default();
        drop(intake);
        self.live.forget();
        if let Some(session) = self.session() {
            session.pressure.tell_again();
        }
        let _switch = self.switch.lock();
        // Or a task would run on a pad that was deactivated meanwhile.
        if !self.srcpad.is_active() {
            return;
        }
        for event in self.inflight.take_kept() {
            // A segment is of before the flush; all others still hold and nobody would send them again.
            if event.type_() != gst::EventType::Segment {
                let _ = self.srcpad.store_sticky_event(&event);
            }
        }
        if let Err(error) = self.start_flow() {
            gst::warning!(CAT, imp = self, "no task after the flush: {error}");
        }
    }

    fn set_caps(&self, caps: &gst::CapsRef) -> bool {
        let Some(session) = self.session() else { return false };
        let Some((reader, refusal)) = Reader::new(caps, session.stream.spec(), &self.obj().name()) else {
            gst::element_imp_error!(
                self,
                gst::CoreError::Negotiation,
                ("the caps {caps} are no video that yolodetect reads: put a videoconvert in front")
            );
            return false;
        };
        if let Some(refusal) = refusal {
            self.warn_of_fetching(&refusal);
        }
        let period = reader.info().fps();
        let period = (period.numer() > 0 && period.denom() > 0)
            .then(|| Duration::from_secs_f64(f64::from(period.denom()) / f64::from(period.numer())));
        self.live.set_period(period);
        self.intake.lock().reader = Some(reader);
        true
    }

    pub(super) fn sink_query(&self, pad: &gst::Pad, query: &mut gst::QueryRef) -> bool {
        if !query.is_serialized() {
            return gst::Pad::query_default(pad, Some(&*self.obj()), query);
        }
        let session = self.session();
        if let Some(session) = &session {
            session.stream.hurry();
        }
        let mut crossed = false;
        let answered = self.inflight.cross(|| {
            crossed = true;
            self.srcpad.peer_query(query)
        });
        // A sink that has nothing to say does not answer: we have.
        if let (gst::QueryViewMut::Allocation(query), Some(session), true) =
            (query.view_mut(), session, crossed)
            && let Ok(tuning) = self.tuning(&session)
        {
            self.upstream_is_live();
            // And one being pushed.
            let most = self.depth(&session, &tuning) + 1;
            let held = tuning.buffers(&session, &self.live).min(most) as u32;
            let rules = self.settings.lock().memory.pool_rules();
            let ledger = self.ledger.lock().clone();
            negotiation::answer_allocation(query, held, rules, &ledger);
            return true;
        }
        answered
    }
}
