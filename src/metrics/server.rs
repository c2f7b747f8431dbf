//! HTTP servers, one per address, each while somebody holds a guard of it.
//!
//! A server is one thread. It talks to at most `CONNECTIONS` clients at a time, answers one request of each, and hangs up
//! after `PATIENCE` whatever the client does: others wait that long in the system's own queue at the worst.

use std::convert::Infallible;
use std::future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{self, MissedTickBehavior};

use super::history;
use super::site::Site;

/// Clients that are talked to at the same time.
const CONNECTIONS: usize = 64;
/// For a request's head to come in.
const HEAD_PATIENCE: Duration = Duration::from_secs(2);
/// For all of a connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a request that are read at most; also hyper's least.
const HEAD_BYTES: usize = 8192;
const HEADERS: usize = 64;
/// After the system refused a connection, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

struct Running {
    address: SocketAddr,
    guards: usize,
    /// Dropped to stop.
    stop: oneshot::Sender<Infallible>,
    thread: JoinHandle<()>,
}

/// Held while a server starts or stops, so that an address is free when its last guard is gone. Servers' threads take it
/// not.
static SERVERS: Mutex<Vec<Running>> = Mutex::new(Vec::new());

/// A share of the server at an address. With the last one it stops, and the address is free.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
}

impl Server {
    /// Starts the server where it does not run yet.
    ///
    /// # Errors
    /// The address cannot be bound, or there is no thread to be had.
    pub fn start(address: SocketAddr) -> io::Result<Self> {
        let mut servers = SERVERS.lock();
        match servers.iter_mut().find(|running| running.address == address) {
            Some(running) => running.guards += 1,
            None => servers.push(run(address)?),
        }
        Ok(Self { address })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut servers = SERVERS.lock();
        let Some(place) = servers.iter().position(|running| running.address == self.address) else { return };
        servers[place].guards -= 1;
        if servers[place].guards > 0 {
            return;
        }
        let Running { stop, thread, .. } = servers.swap_remove(place);
        drop(stop);
        // The thread itself may drop the last reference to an element that is being thrown away.
        if thread.thread().id() != thread::current().id() {
            // It catches its tasks' panics.
            let _ = thread.join();
        }
    }
}

fn run(address: SocketAddr) -> io::Result<Running> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let listener = {
        let _context = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    let (stop, stopped) = oneshot::channel();
    let site = Arc::new(Site::new(address.ip()));
    let thread = thread::Builder::new().name("yolo-metrics".into()).spawn(move || {
        runtime.spawn(tick(site.clone()));
        runtime.spawn(accept(listener, site));
        // Ends with an error, when the sender is dropped. What is going on then ends with the runtime.
        let _ = runtime.block_on(stopped);
    })?;
    Ok(Running { address, guards: 1, stop, thread })
}

async fn tick(site: Arc<Site>) {
    let mut period = time::interval(history::PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        site.tick();
    }
}

async fn accept(listener: tokio::net::TcpListener, site: Arc<Site>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // Never closed.
    while let Ok(place) = places.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let site = site.clone();
                tokio::spawn(async move {
                    let _ = time::timeout(PATIENCE, serve(stream, site)).await;
                    drop(place);
                });
            }
            Err(_) => time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// Clients' mistakes are theirs: hyper answers what it can.
async fn serve(stream: TcpStream, site: Arc<Site>) {
    let service = service_fn(|request| future::ready(Ok::<_, Infallible>(site.answer(&request))));
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
