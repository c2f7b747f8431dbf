//! What is answered to which request.

use std::net::IpAddr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use parking_lot::Mutex;

use super::history::History;
use super::{exposition, figures, page, status};

/// One server's. Used by its thread alone.
pub struct Site {
    history: Mutex<History>,
    /// Unix time in milliseconds.
    start: u64,
    /// Only programs of this machine come, browsers among them.
    loopback: bool,
}

impl Site {
    /// Served at this address.
    pub fn new(address: IpAddr) -> Self {
        let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            history: Mutex::new(History::new(Instant::now())),
            start: u64::try_from(start.as_millis()).unwrap_or(u64::MAX),
            loopback: address.to_canonical().is_loopback(),
        }
    }

    /// Once a period.
    pub fn tick(&self) {
        let figures = figures::collect();
        self.history.lock().observe(&figures, Instant::now());
    }

    /// Bodies are not read.
    pub fn answer<B>(&self, request: &Request<B>) -> Response<String> {
        let mut response = self.page(request);
        let headers = response.headers_mut();
        for (name, value) in [
            (header::CACHE_CONTROL, "no-store"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }

    fn page<B>(&self, request: &Request<B>) -> Response<String> {
        if self.loopback && !is_local(request.headers()) {
            return refusal(
                StatusCode::MISDIRECTED_REQUEST,
                "this address is served by IP address or as localhost only",
            );
        }
        let path = request.uri().path();
        if !["/", "/metrics", "/status.json"].contains(&path) {
            return refusal(StatusCode::NOT_FOUND, "there are /, /metrics and /status.json");
        }
        // Of an answer to HEAD the body is left away when it is sent.
        if ![Method::GET, Method::HEAD].contains(request.method()) {
            let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, "there are only GET and HEAD");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match path {
            "/" => {
                let (page, policy) = page::render();
                let mut response = text(StatusCode::OK, "text/html; charset=utf-8", page);
                if let Ok(policy) = HeaderValue::try_from(policy) {
                    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
                }
                response
            }
            "/metrics" => match exposition::render(figures::collect()) {
                Ok(metrics) => text(StatusCode::OK, exposition::CONTENT_TYPE, metrics),
                Err(error) => refusal(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
            },
            _ => {
                let figures = figures::collect();
                let since = since(request.uri().query().unwrap_or_default());
                let status = status::render(&figures, &self.history.lock(), self.start, since);
                text(StatusCode::OK, "application/json", status)
            }
        }
    }
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn refusal(status: StatusCode, reason: &str) -> Response<String> {
    text(status, "text/plain; charset=utf-8", format!("{status}: {reason}\n"))
}

/// The first row that is wanted, 0 where the query does not say.
fn since(query: &str) -> u64 {
    let value = query.split('&').find_map(|pair| pair.strip_prefix("since="));
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// Whether a request was meant for this machine. A web site that has its name resolve to 127.0.0.1 would have a browser
/// send that name; it could read the answers then.
fn is_local(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next(),
        None => host.split(':').next(),
    };
    name.is_some_and(|name| name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_elsewhere_are_not_local() {
        for (host, local) in [
            ("127.0.0.1:9464", true),
            ("127.0.0.1", true),
            ("[::1]:9464", true),
            ("LocalHost:9464", true),
            ("192.168.0.7:80", true),
            ("attacker.example:9464", false),
            ("127.0.0.1.attacker.example", false),
            ("localhost.attacker.example:9464", false),
            ("", false),
            ("[", false),
        ] {
            let request = Request::builder().header("Host", host).body(()).unwrap();
            assert_eq!(is_local(request.headers()), local, "{host}");
            for own in ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"] {
                let status = Site::new(own.parse().unwrap()).answer(&request).status();
                assert_eq!(status == StatusCode::OK, local, "{own} {host}: {status}");
            }
            for open in ["0.0.0.0", "::", "192.168.0.7"] {
                let status = Site::new(open.parse().unwrap()).answer(&request).status();
                assert_eq!(status, StatusCode::OK, "{open} {host}");
            }
        }
        assert!(is_local(&HeaderMap::new()));
    }

    #[test]
    fn rows_are_asked_for_by_number() {
        for (query, first) in [("", 0), ("since=7", 7), ("a=b&since=7", 7), ("since=", 0), ("since=-1", 0)] {
            assert_eq!(since(query), first, "{query}");
        }
    }
}
