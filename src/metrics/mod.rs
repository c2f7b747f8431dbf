//! The figures of the process over HTTP: for Prometheus, and as a page that draws them.
//!
//! ```text
//!  elements ── figures  numbers, copied on request ──┬── exposition  GET /metrics
//!  memory   ──┘                                      ├── status      GET /status.json
//!              history  once a second, ten minutes ──┘   page        GET /
//! ```
//!
//! There is one [`server`] per address, and none, nor a thread, where no element names an address. Whatever the address and
//! the element that named it, a server shows all streams of the process. It never writes to a socket with a lock held, and
//! nothing of the frame path waits for it.
//!
//! The HTTP is `hyper`'s on a current-thread `tokio`: both are the best kept of their kind and MIT, hyper reads hostile
//! requests under bounds that can be set, and one thread with one request per connection (64 at most) takes about a
//! megabyte. Of the small servers, `tiny_http` 0.12 bounds neither a request's headers nor its time. The text format is
//! the Prometheus project's own `prometheus-client`.

pub mod address;
mod exposition;
pub mod figures;
mod history;
mod page;
pub mod server;
mod site;
mod status;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const COMMIT: &str = env!("COMMIT_ID");
