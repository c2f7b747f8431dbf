//! What ended a connection, in words that say what to do.

use std::time::Duration;

use crate::address::Address;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Broken off, refused, unreachable.
    Lost,
    /// Frames came, then no more.
    Frozen,
    /// There was never a frame.
    Silent,
    Unauthorized,
    NotFound,
    /// Not the camera's fault: the detector or the file of its lines.
    Detection,
}

impl Kind {
    /// As the status says it.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Lost => "lost",
            Kind::Frozen => "frozen",
            Kind::Silent => "no frames",
            Kind::Unauthorized => "unauthorized",
            Kind::NotFound => "not found",
            Kind::Detection => "detection failed",
        }
    }

    /// Whether a person has to do something first.
    pub fn is_hopeless(self) -> bool {
        matches!(self, Kind::Unauthorized | Kind::NotFound)
    }
}

#[derive(Clone, Debug)]
pub struct Trouble {
    pub kind: Kind,
    pub reason: String,
}

impl Trouble {
    pub fn lost(reason: impl Into<String>) -> Self {
        Self { kind: Kind::Lost, reason: reason.into() }
    }

    pub fn detection(reason: impl Into<String>) -> Self {
        Self { kind: Kind::Detection, reason: reason.into() }
    }

    /// Nothing for so long.
    pub fn stalled(stall: Duration, ever_played: bool) -> Self {
        let seconds = stall.as_secs_f64();
        match ever_played {
            true => Self { kind: Kind::Frozen, reason: format!("no frame for {seconds:.1} s") },
            false => Self {
                kind: Kind::Silent,
                reason: format!("none came within {seconds:.1} s; is the address right, and the camera up?"),
            },
        }
    }

    /// An error that the source posted.
    pub fn of_source(error: &gst::message::Error, address: &Address) -> Self {
        if error.error().matches(gst::ResourceError::NotAuthorized) {
            let reason = match &address.credentials {
                Some(credentials) => format!(
                    "the camera refuses the password of {} (401): correct the address, or --user and \
                     --password-file",
                    credentials.user
                ),
                None => "the camera wants credentials (401): put them into the address \
                         (rtsp://USER:PASSWORD@…), or give --user and --password-file"
                    .into(),
            };
            return Self { kind: Kind::Unauthorized, reason };
        }
        if error.error().matches(gst::ResourceError::NotFound) {
            let reason = format!(
                "the camera is there, but has nothing at {address} (404): look up the stream's path in its \
                 manual"
            );
            return Self { kind: Kind::NotFound, reason };
        }
        Self::lost(format!("{address}: {}", explain(&error.error(), error.debug())))
    }
}

/// An element's own message and the details that it may have given, without the place in its source code.
pub fn explain(message: &gst::glib::Error, debug: Option<gst::glib::GString>) -> String {
    let debug = debug.unwrap_or_default();
    let details: Vec<_> = debug.lines().skip(1).map(str::trim).filter(|line| !line.is_empty()).collect();
    if details.is_empty() {
        return message.to_string();
    }
    format!("{} ({})", message.message().trim_end_matches('.'), details.join("; "))
}
