//! The source pad's task: waits for the first frame in flight, gives it its metas and pushes it, with the events and
//! queries in their places.

use std::sync::atomic::{AtomicU32, Ordering};

use gst::prelude::*;
use gst::subclass::prelude::*;

use super::imp::{CAT, YoloDetect};
use super::inflight::{Frame, Item, Next};
use super::session::Session;
use crate::batch::Outcome;
use crate::batch::ticket::RunReport;
use crate::detection::Detection;
use crate::engine::{EngineError, EngineErrorKind};
use crate::history;
use crate::meta::{self, FrameInfo, Status};

/// Ids of detections, unique in the process and so in every stream, also behind several elements.
static NEXT_DETECTION: AtomicU32 = AtomicU32::new(1);

/// After so many failed runs in a row nothing good is to be expected.
const FAILURES_TO_GIVE_UP: u32 = 30;

impl YoloDetect {
    /// One turn: waits for the first item in flight and hands it on.
    pub(super) fn step(&self) {
        let Ok((next, generation)) = self.inflight.next() else {
            let _switch = self.switch.lock();
            // Flushing, or broken: whoever mends it starts the task again, or has just done so.
            if self.inflight.flow().is_err() {
                let _ = self.srcpad.pause_task();
            }
            return;
        };
        match next {
            Next::Poked => return self.take_notice(),
            Next::Frame(Some(ticket), Some(deadline)) => {
                if !ticket.wait_until(deadline) {
                    ticket.cancel();
                }
            }
            Next::Frame(Some(ticket), None) => {
                ticket.wait();
            }
            Next::Frame(None, _) | Next::Other => (),
        }
        match self.inflight.take(generation) {
            Some(Item::Frame(frame)) => self.push_frame(frame),
            Some(Item::Event(event)) => {
                let kind = event.type_();
                gst::log!(CAT, imp = self, "event {kind:?}");
                if kind == gst::EventType::Eos {
                    // The last word, however short the stream was.
                    self.report_stats(true);
                }
                self.srcpad.push_event(event);
                self.follow_stream(kind);
            }
            Some(Item::Query(crossing)) => crossing.let_pass(),
            None => (),
        }
    }

    fn push_frame(&self, frame: Frame) {
        let Some(session) = self.session() else { return };
        let Some((status, buffer)) = self.finish(&session, frame) else { return };
        self.stats.lock().frame_out(status);
        let flow = self.srcpad.push(buffer);
        self.report_stats(false);
        match flow {
            Ok(_) => (),
            Err(gst::FlowError::Eos) => self.inflight.refuse_frames(),
            Err(flow) => {
                gst::debug!(CAT, imp = self, "downstream says {flow:?}");
                if self.inflight.break_flow(flow) && flow != gst::FlowError::Flushing {
                    self.end_broken_stream(flow);
                }
            }
        }
    }

    /// The frame with its metas; `None` for one that is not to be pushed any more.
    fn finish(&self, session: &Session, frame: Frame) -> Option<(Status, gst::Buffer)> {
        let Frame { mut buffer, number, size, mut status, ticket, .. } = frame;
        if let Some(ticket) = &ticket {
            match ticket.outcome() {
                Outcome::Done => self.failures.store(0, Ordering::Relaxed),
                Outcome::Failed(error) => {
                    status = Status::Failed;
                    if !self.survives_failure(&error) {
                        return None;
                    }
                }
                Outcome::EngineLost(error) => {
                    self.post_engine_error(&error);
                    self.give_up();
                    return None;
                }
                // After a flush the frame would not have been handed out: it is too late for its result.
                Outcome::Cancelled => {
                    status = Status::Overload;
                    self.watch_latency(session);
                }
                Outcome::Pending => return None,
            }
            self.report_device(session);
            if let Some(reduced) = ticket.with_result(|_, report| report.reduced) {
                self.report_reduced(session, reduced);
            }
        }
        let pts = buffer.pts().map(gst::ClockTime::nseconds);
        let mut attach = |detections: &[Detection], report: &RunReport| {
            let first_id = NEXT_DETECTION.fetch_add(detections.len() as u32, Ordering::Relaxed);
            if status == Status::Inferred {
                session.pressure.history.record(history::Frame { number, pts, first_id, size }, detections);
            }
            let info = FrameInfo {
                element: session.element.clone(),
                frame: number,
                status,
                first_id,
                inference_time: report.inference.try_into().unwrap_or(gst::ClockTime::ZERO),
                batch: report.batch,
            };
            // Copies the buffer's header where someone else holds it, never its pixels.
            meta::attach(buffer.make_mut(), &info, detections, &session.quarks, size, session.kinds)
        };
        let attached = match &ticket {
            Some(ticket) if status == Status::Inferred => {
                let (attached, report, count) = ticket.with_result(|detections, report| {
                    (attach(detections, report), *report, detections.len())
                });
                self.stats.lock().inferred(&report, count);
                self.live.in_time();
                attached
            }
            _ => attach(&[], &RunReport::default()),
        };
        if let Err(error) = attached {
            gst::element_imp_error!(
                self,
                gst::LibraryError::Failed,
                ("the detections of frame {number} cannot be attached: {error}")
            );
            self.give_up();
            return None;
        }
        Some((status, buffer))
    }

    /// A failed run costs detections, not frames; many in a row end the stream, unless memory is what is short, which
    /// may pass.
    fn survives_failure(&self, error: &EngineError) -> bool {
        match self.failures.fetch_add(1, Ordering::Relaxed) + 1 {
            1 => gst::element_imp_warning!(
                self,
                gst::LibraryError::Failed,
                ("{}; the frame passes with the status failed", error.message),
                ["{}", error.detail]
            ),
            FAILURES_TO_GIVE_UP
                if !matches!(error.kind, EngineErrorKind::OutOfMemory | EngineErrorKind::NoBudget) =>
            {
                gst::element_imp_error!(
                    self,
                    gst::LibraryError::Failed,
                    ("{FAILURES_TO_GIVE_UP} times in a row: {}", error.message),
                    ["{}", error.detail]
                );
                self.give_up();
                return false;
            }
            _ => (),
        }
        true
    }

    /// The element itself cannot go on and has said why.
    fn give_up(&self) {
        if self.inflight.break_flow(gst::FlowError::Error) {
            self.srcpad.push_event(gst::event::Eos::new());
        }
    }

    /// Upstream has said its last word, so that it falls to us to tell why nothing comes out.
    pub(super) fn end_broken_stream(&self, flow: gst::FlowError) {
        gst::element_imp_error!(
            self,
            gst::StreamError::Failed,
            ("the stream ended early: an element downstream answered {flow}"),
            ["see its own messages"]
        );
        self.srcpad.push_event(gst::event::Eos::new());
    }

    pub(super) fn src_event(&self, pad: &gst::Pad, event: gst::Event) -> bool {
        if event.type_() == gst::EventType::Reconfigure {
            // Sent when a pad is linked.
            self.resume_flow(|flow, _| flow == gst::FlowError::NotLinked);
        }
        gst::Pad::event_default(pad, Some(&*self.obj()), event)
    }
}
