//! The FIFO of one stream: frames with their tickets, and the serialized events and queries between them.
//!
//! The streaming thread puts in, the source pad's task takes out. A place for a frame is reserved before
//! anything is done for it, so that a slow sink stops the stream here, where it holds no slot.
//!
//! Lock order: `Inflight::state` is a leaf; tickets are waited for and cancelled outside it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::batch::Ticket;
use crate::meta::Status;

/// A frame on its way through.
pub struct Frame {
    pub buffer: gst::Buffer,
    /// Counted from 0 in this element's stream.
    pub number: u64,
    /// Width and height, in pixels.
    pub size: (u32, u32),
    /// [`Status::Inferred`] for a frame with a ticket, until the ticket says otherwise.
    pub status: Status,
    pub ticket: Option<Arc<Ticket>>,
    /// When it leaves at the latest, with its result or without.
    pub deadline: Option<Instant>,
}

pub enum Item {
    Frame(Frame),
    Event(gst::Event),
    /// A serialized query: its own thread performs it while the source pad's task stands still.
    Query(Arc<Crossing>),
}

/// Where a serialized query meets the source pad's task.
#[derive(Default)]
pub struct Crossing {
    phase: Mutex<Phase>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Queued,
    Reached,
    Over,
}

impl Crossing {
    /// For the query: waits for its turn; `false` when the stream is flushed meanwhile.
    fn wait_turn(&self) -> bool {
        let mut phase = self.phase.lock();
        while *phase == Phase::Queued {
            self.changed.wait(&mut phase);
        }
        *phase == Phase::Reached
    }

    /// For the task: lets the query go and waits until it is through.
    pub fn let_pass(&self) {
        let mut phase = self.phase.lock();
        if *phase == Phase::Queued {
            *phase = Phase::Reached;
            self.changed.notify_all();
        }
        while *phase == Phase::Reached {
            self.changed.wait(&mut phase);
        }
    }

    /// Ends it for both sides.
    fn finish(&self) {
        *self.phase.lock() = Phase::Over;
        self.changed.notify_all();
    }
}

struct State {
    items: VecDeque<Item>,
    /// Frames in `items`, plus the places reserved.
    frames: usize,
    /// What the last push said; handed to upstream until a flush.
    flow: Result<gst::FlowSuccess, gst::FlowError>,
    /// Downstream answered end of stream; see [`Inflight::refuse_frames`].
    refusing: bool,
    /// End of stream was taken in: upstream does not ask for the flow any more.
    ended: bool,
    /// Counts flushes: what was begun before one must not go on after it.
    generation: u64,
    /// The task has something to tell; outlives flushes and breaks.
    poked: bool,
}

pub struct Inflight {
    state: Mutex<State>,
    /// For the streaming thread: room, or a bad flow.
    room: Condvar,
    /// For the task: an item, or a bad flow.
    filled: Condvar,
}

impl Default for Inflight {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                items: VecDeque::new(),
                frames: 0,
                flow: Err(gst::FlowError::Flushing),
                refusing: false,
                ended: false,
                generation: 0,
                poked: false,
            }),
            room: Condvar::new(),
            filled: Condvar::new(),
        }
    }
}

impl State {
    /// Empties the list but for the sticky events: upstream holds those for delivered and will not send them
    /// again. Frames are not counted here.
    fn take_transient(&mut self) -> Vec<Item> {
        let (kept, dropped) = std::mem::take(&mut self.items).into_iter().partition(|item| match item {
            Item::Event(event) => outlives_a_break(event),
            _ => false,
        });
        self.items = kept;
        dropped.into()
    }
}

/// Frees whoever waits for an item that will not leave. Not with the state locked.
fn abandon(items: Vec<Item>) {
    for item in items {
        match item {
            Item::Frame(Frame { ticket: Some(ticket), .. }) => {
                ticket.cancel();
            }
            Item::Query(crossing) => crossing.finish(),
            _ => (),
        }
    }
}

/// A place for one frame, given up on drop.
pub struct Place<'a> {
    inflight: &'a Inflight,
    generation: u64,
    used: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.used {
            let mut state = self.inflight.state.lock();
            if state.generation == self.generation {
                state.frames -= 1;
            }
        }
    }
}

impl Place<'_> {
    /// Puts the frame in. After a flush it is dropped and its ticket cancelled.
    pub fn fill(mut self, frame: Frame) -> Result<gst::FlowSuccess, gst::FlowError> {
        self.used = true;
        let mut state = self.inflight.state.lock();
        let flow = match state.flow {
            _ if state.generation != self.generation => Err(gst::FlowError::Flushing),
            Ok(_) if state.refusing => Err(gst::FlowError::Eos),
            flow => flow,
        };
        if flow.is_err() {
            if state.generation == self.generation {
                state.frames -= 1;
            }
            drop(state);
            if let Some(ticket) = frame.ticket {
                ticket.cancel();
            }
            return flow;
        }
        state.items.push_back(Item::Frame(frame));
        self.inflight.filled.notify_one();
        Ok(gst::FlowSuccess::Ok)
    }
}

/// Whether frames that follow `event` are of another segment, or none do.
fn reopens(event: &gst::Event) -> bool {
    matches!(event.type_(), gst::EventType::Segment | gst::EventType::StreamStart | gst::EventType::Eos)
}

fn outlives_a_break(event: &gst::Event) -> bool {
    event.is_sticky() && event.type_() != gst::EventType::Eos
}

/// Whether a pad keeps only one of the two, as sticky events are kept.
fn replaces(event: &gst::Event, earlier: &gst::Event) -> bool {
    let names =
        (event.structure().map(|fields| fields.name()), earlier.structure().map(|fields| fields.name()));
    event.type_() == earlier.type_() && names.0 == names.1
}

/// What the source pad's task does next.
pub enum Next {
    /// Wait for this ticket, until the deadline if there is one, then ask again with [`Inflight::take`].
    Frame(Option<Arc<Ticket>>, Option<Instant>),
    Other,
    /// Somebody called [`Inflight::poke`]; the first item stays where it is.
    Poked,
}

impl Inflight {
    /// A place for one frame, waiting while `limit` frames are held.
    pub fn reserve(&self, limit: usize) -> Result<Place<'_>, gst::FlowError> {
        let mut state = self.state.lock();
        loop {
            state.flow?;
            if state.refusing {
                return Err(gst::FlowError::Eos);
            }
            if state.frames < limit.max(1) {
                state.frames += 1;
                return Ok(Place { inflight: self, generation: state.generation, used: false });
            }
            self.room.wait(&mut state);
        }
    }

    /// Puts a serialized event in.
    ///
    /// While the stream is flushing or broken, sticky events are kept all the same, for when it goes on.
    ///
    /// # Errors
    /// The flow that stands in the way of any other event.
    pub fn push_event(&self, event: gst::Event) -> Result<(), gst::FlowError> {
        let mut state = self.state.lock();
        if let Err(flow) = state.flow {
            if !outlives_a_break(&event) {
                return Err(flow);
            }
            // Nobody takes them out meanwhile: without this they would pile up.
            state.items.retain(|item| !matches!(item, Item::Event(earlier) if replaces(&event, earlier)));
        }
        if reopens(&event) {
            state.refusing = false;
            state.ended = event.type_() == gst::EventType::Eos;
        }
        state.items.push_back(Item::Event(event));
        self.filled.notify_one();
        Ok(())
    }

    /// Performs `query` when everything before it has left; `false` where the stream is flushing or broken.
    pub fn cross(&self, query: impl FnOnce() -> bool) -> bool {
        let crossing = Arc::new(Crossing::default());
        {
            let mut state = self.state.lock();
            if state.flow.is_err() {
                return false;
            }
            state.items.push_back(Item::Query(crossing.clone()));
            self.filled.notify_one();
        }
        let answered = crossing.wait_turn() && query();
        crossing.finish();
        answered
    }

    /// Waits for the first item; an error ends the task's loop.
    pub fn next(&self) -> Result<(Next, u64), gst::FlowError> {
        let mut state = self.state.lock();
        loop {
            state.flow?;
            if std::mem::take(&mut state.poked) {
                return Ok((Next::Poked, state.generation));
            }
            match state.items.front() {
                Some(Item::Frame(frame)) => {
                    return Ok((Next::Frame(frame.ticket.clone(), frame.deadline), state.generation));
                }
                Some(_) => return Ok((Next::Other, state.generation)),
                None => self.filled.wait(&mut state),
            }
        }
    }

    /// Wakes the task where it waits for an item, once; where it does not run, when it does. Returns at once.
    pub fn poke(&self) {
        self.state.lock().poked = true;
        self.filled.notify_one();
    }

    /// Takes the first item, unless there was a flush since `generation`.
    pub fn take(&self, generation: u64) -> Option<Item> {
        let mut state = self.state.lock();
        if state.generation != generation {
            return None;
        }
        let item = state.items.pop_front();
        if let Some(Item::Frame(_)) = item {
            state.frames -= 1;
            self.room.notify_one();
        }
        item
    }

    /// What the last push said, for upstream.
    pub fn flow(&self) -> Result<gst::FlowSuccess, gst::FlowError> {
        self.state.lock().flow
    }

    pub fn frames(&self) -> usize {
        self.state.lock().frames
    }

    /// For a flush or the end of all flow: frees everyone who waits, drops what is held and refuses what comes.
    /// Sticky events stay; see [`Self::take_kept`].
    pub fn stop(&self) {
        let dropped = {
            let mut state = self.state.lock();
            state.flow = Err(gst::FlowError::Flushing);
            state.generation += 1;
            state.frames = 0;
            self.room.notify_all();
            self.filled.notify_all();
            state.take_transient()
        };
        abandon(dropped);
    }

    /// A push failed: frames that are held would fail too and are dropped, and upstream is told `flow` from now
    /// on. Whether upstream has said its last word already and cannot be told.
    pub fn break_flow(&self, flow: gst::FlowError) -> bool {
        let (dropped, ended) = {
            let mut state = self.state.lock();
            // A flush came first.
            if state.flow == Err(gst::FlowError::Flushing) {
                return false;
            }
            state.flow = Err(flow);
            let dropped = state.take_transient();
            // Places that are only reserved are given up by their holders.
            state.frames -= dropped.iter().filter(|item| matches!(item, Item::Frame(_))).count();
            self.room.notify_all();
            self.filled.notify_all();
            (dropped, state.ended)
        };
        abandon(dropped);
        ended
    }

    /// Goes on after a break for which `mended` holds; whether it does. The task is to be started then.
    pub fn resume(&self, mended: impl FnOnce(gst::FlowError, bool) -> bool) -> bool {
        let mut state = self.state.lock();
        let resumed = state.flow.is_err_and(|flow| mended(flow, state.ended));
        if resumed {
            state.flow = Ok(gst::FlowSuccess::Ok);
            state.refusing = false;
        }
        resumed
    }

    /// The sticky events that a stop or break kept. Only while stopped.
    pub fn take_kept(&self) -> Vec<gst::Event> {
        let items = std::mem::take(&mut self.state.lock().items);
        let event = |item| match item {
            Item::Event(event) => Some(event),
            _ => None,
        };
        items.into_iter().filter_map(event).collect()
    }

    /// Downstream wants no more frames of this segment: drops those that are held, up to the event that
    /// starts anew or ends the stream, and refuses others until such an event comes.
    pub fn refuse_frames(&self) {
        let mut state = self.state.lock();
        let end = state.items.iter().position(|item| matches!(item, Item::Event(event) if reopens(event)));
        state.refusing = end.is_none();
        let rest = end.map(|end| state.items.split_off(end)).unwrap_or_default();
        let (dropped, kept): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut state.items).into_iter().partition(|item| matches!(item, Item::Frame(_)));
        state.items = kept;
        state.items.extend(rest);
        state.frames -= dropped.len();
        self.room.notify_all();
        drop(state);
        abandon(dropped.into());
    }

    /// Open for a new flow.
    pub fn start(&self) {
        let mut state = self.state.lock();
        state.flow = Ok(gst::FlowSuccess::Ok);
        state.refusing = false;
        state.ended = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn frame(number: u64, ticket: Option<Arc<Ticket>>) -> Frame {
        let status = Status::Inferred;
        Frame { buffer: gst::Buffer::new(), number, size: (1, 1), status, ticket, deadline: None }
    }

    fn segment() -> gst::Event {
        gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new())
    }

    fn caps(width: i32) -> gst::Event {
        gst::event::Caps::new(&gst::Caps::builder("video/x-raw").field("width", width).build())
    }

    fn open() -> Inflight {
        gst::init().unwrap();
        let inflight = Inflight::default();
        inflight.start();
        inflight
    }

    #[test]
    fn frames_leave_in_order_and_free_their_place() {
        let inflight = open();
        for number in 0..2 {
            inflight.reserve(2).unwrap().fill(frame(number, None)).unwrap();
        }
        assert_eq!(inflight.frames(), 2);
        for number in 0..2 {
            let (_, generation) = inflight.next().unwrap();
            match inflight.take(generation) {
                Some(Item::Frame(frame)) => assert_eq!(frame.number, number),
                _ => panic!("no frame"),
            }
        }
        assert_eq!(inflight.frames(), 0);
    }

    #[test]
    fn a_poke_is_heard_once_between_items_and_after_a_flush() {
        let inflight = open();
        let next = || match inflight.next() {
            Ok((Next::Poked, _)) => "poked",
            Ok((Next::Frame(..), _)) => "frame",
            Ok((Next::Other, _)) => "other",
            Err(_) => "stopped",
        };
        inflight.reserve(2).unwrap().fill(frame(0, None)).unwrap();
        inflight.poke();
        inflight.poke();
        assert_eq!([next(), next()], ["poked", "frame"]);
        inflight.poke();
        inflight.stop();
        assert_eq!(next(), "stopped");
        inflight.start();
        assert_eq!(next(), "poked");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(next);
            inflight.poke();
            assert_eq!(waiting.join().unwrap(), "poked");
        });
    }

    #[test]
    fn a_place_that_is_not_used_is_given_up() {
        let inflight = open();
        drop(inflight.reserve(1).unwrap());
        assert!(inflight.reserve(1).is_ok());
    }

    #[test]
    fn a_stop_frees_every_waiter_and_cancels_tickets() {
        let inflight = Arc::new(open());
        let ticket = Arc::new(Ticket::default());
        inflight.reserve(1).unwrap().fill(frame(0, Some(ticket.clone()))).unwrap();
        let late = Place { inflight: &inflight, generation: 0, used: false };
        let blocked = std::thread::spawn({
            let inflight = inflight.clone();
            move || inflight.reserve(1).map(|_| ()).unwrap_err()
        });
        let crossing = std::thread::spawn({
            let inflight = inflight.clone();
            move || inflight.cross(|| true)
        });
        std::thread::sleep(Duration::from_millis(20));
        inflight.stop();
        assert_eq!(blocked.join().unwrap(), gst::FlowError::Flushing);
        assert!(!crossing.join().unwrap());
        assert!(matches!(ticket.wait(), crate::batch::Outcome::Cancelled));
        inflight.start();
        assert_eq!(late.fill(frame(1, None)), Err(gst::FlowError::Flushing));
        assert_eq!(inflight.frames(), 0);
    }

    #[test]
    fn after_end_of_stream_from_downstream_only_a_new_segment_reopens() {
        let inflight = open();
        inflight.reserve(4).unwrap().fill(frame(0, None)).unwrap();
        inflight.push_event(gst::event::Gap::new(gst::ClockTime::ZERO, None)).unwrap();
        inflight.refuse_frames();
        assert_eq!(inflight.frames(), 0);
        assert!(matches!(inflight.next(), Ok((Next::Other, _))), "events stay");
        assert_eq!(inflight.reserve(4).err(), Some(gst::FlowError::Eos));
        inflight.push_event(segment()).unwrap();
        assert!(inflight.reserve(4).is_ok());
    }

    #[test]
    fn a_frame_on_its_way_when_downstream_ends_is_refused() {
        let inflight = open();
        let place = inflight.reserve(4).unwrap();
        inflight.refuse_frames();
        assert_eq!(place.fill(frame(0, None)), Err(gst::FlowError::Eos));
        assert_eq!(inflight.frames(), 0);
    }

    #[test]
    fn sticky_events_outlive_a_flush() {
        let inflight = open();
        inflight.push_event(caps(1)).unwrap();
        inflight.reserve(4).unwrap().fill(frame(0, None)).unwrap();
        inflight.push_event(gst::event::Gap::new(gst::ClockTime::ZERO, None)).unwrap();
        inflight.push_event(gst::event::Eos::new()).unwrap();
        inflight.stop();
        assert_eq!(inflight.push_event(gst::event::Eos::new()), Err(gst::FlowError::Flushing));
        for width in 2..100 {
            inflight.push_event(caps(width)).unwrap();
        }
        let kept: Vec<_> = inflight.take_kept();
        assert_eq!(kept.len(), 1, "{kept:?}");
        assert!(kept[0].structure().is_some_and(|caps| caps.to_string().contains("99")), "{kept:?}");
        assert!(inflight.take_kept().is_empty());
    }

    #[test]
    fn a_break_is_told_to_upstream_or_to_whoever_breaks_it() {
        let inflight = open();
        let ticket = Arc::new(Ticket::default());
        let late = inflight.reserve(4).unwrap();
        inflight.reserve(4).unwrap().fill(frame(0, Some(ticket.clone()))).unwrap();
        inflight.push_event(caps(1)).unwrap();
        assert!(!inflight.break_flow(gst::FlowError::NotLinked), "upstream asks again");
        assert!(matches!(ticket.wait(), crate::batch::Outcome::Cancelled));
        assert_eq!(late.fill(frame(1, None)), Err(gst::FlowError::NotLinked));
        assert_eq!(inflight.frames(), 0);
        assert_eq!(inflight.reserve(4).err(), Some(gst::FlowError::NotLinked));
        assert_eq!(inflight.push_event(gst::event::Eos::new()), Err(gst::FlowError::NotLinked));

        assert!(!inflight.resume(|flow, _| flow == gst::FlowError::Error));
        assert!(inflight.resume(|flow, _| flow == gst::FlowError::NotLinked));
        let (_, generation) = inflight.next().unwrap();
        assert!(matches!(inflight.take(generation), Some(Item::Event(_))), "the caps were kept");
        inflight.push_event(gst::event::Eos::new()).unwrap();
        assert!(inflight.break_flow(gst::FlowError::Error), "upstream is gone");
        assert!(inflight.resume(|_, ended| ended));
        inflight.push_event(segment()).unwrap();
        assert!(!inflight.break_flow(gst::FlowError::Error), "upstream is back");
    }

    /// Pixels whose owner looks at the element when they are released, as an application may.
    struct Curious(Arc<Inflight>, std::sync::mpsc::Sender<usize>);

    impl AsRef<[u8]> for Curious {
        fn as_ref(&self) -> &[u8] {
            &[0]
        }
    }

    impl Drop for Curious {
        fn drop(&mut self) {
            let _ = self.1.send(self.0.frames());
        }
    }

    #[test]
    fn no_buffer_is_released_with_the_state_locked() {
        gst::init().unwrap();
        for drop_all in [Inflight::refuse_frames, Inflight::stop, |inflight: &Inflight| {
            inflight.break_flow(gst::FlowError::Error);
        }] {
            let inflight = Arc::new(open());
            let (released_in, released) = std::sync::mpsc::channel();
            let buffer = gst::Buffer::from_slice(Curious(inflight.clone(), released_in));
            inflight.reserve(4).unwrap().fill(Frame { buffer, ..frame(0, None) }).unwrap();
            std::thread::spawn(move || drop_all(&inflight));
            assert_eq!(released.recv_timeout(std::time::Duration::from_secs(60)), Ok(0));
        }
    }

    #[test]
    fn a_flush_is_not_overwritten_by_a_late_flow() {
        let inflight = open();
        inflight.stop();
        assert!(!inflight.break_flow(gst::FlowError::Error));
        assert_eq!(inflight.flow(), Err(gst::FlowError::Flushing));
    }

    #[test]
    fn a_query_is_performed_at_its_place() {
        let inflight = Arc::new(open());
        inflight.reserve(1).unwrap().fill(frame(0, None)).unwrap();
        let query = std::thread::spawn({
            let inflight = inflight.clone();
            move || {
                let frames = inflight.clone();
                inflight.cross(move || frames.frames() == 0)
            }
        });
        while inflight.state.lock().items.len() < 2 {
            std::thread::yield_now();
        }
        for _ in 0..2 {
            let (_, generation) = inflight.next().unwrap();
            if let Some(Item::Query(crossing)) = inflight.take(generation) {
                crossing.let_pass();
            }
        }
        assert!(query.join().unwrap());
    }
}
