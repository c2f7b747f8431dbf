//! Where a camera is, and with what credentials; the password is never part of anything that is shown.

use std::fmt;

use gst::glib;

/// What `rtspsrc` takes; the longer ones say how (over UDP, TCP, HTTP, TLS).
const SCHEMES: [&str; 8] = ["rtsp", "rtspu", "rtspt", "rtsph", "rtsps", "rtspsu", "rtspst", "rtspsh"];

#[derive(Clone, PartialEq)]
pub struct Credentials {
    pub user: String,
    pub password: String,
}

#[derive(Clone, PartialEq)]
pub struct Address {
    /// Without credentials.
    uri: String,
    pub credentials: Option<Credentials>,
}

impl Address {
    /// # Errors
    /// What is wrong with it, without the password that may be in it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let refuse = |reason: &str| {
            format!(
                "{} is no camera's address: {reason}; it should look like \
                 rtsp://USER:PASSWORD@HOST:PORT/PATH, with %2F for a / in the password",
                redacted(text)
            )
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| refuse("it has no ://"))?;
        if !SCHEMES.contains(&scheme) {
            return Err(refuse("it does not begin with rtsp://"));
        }
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        // By the last @ of them, and taking # for a letter: many passwords hold these as they are.
        let (login, place) = match authority.rsplit_once('@') {
            Some((login, place)) => (Some(login), place),
            None => (None, authority),
        };
        check_place(place).map_err(refuse)?;
        let credentials = login.map(credentials).transpose().map_err(refuse)?;
        Ok(Self { uri: format!("{scheme}://{place}{path}"), credentials })
    }

    /// What an address without credentials gets.
    pub fn or_credentials(mut self, credentials: Option<&Credentials>) -> Self {
        self.credentials = self.credentials.or_else(|| credentials.cloned());
        self
    }

    /// Without credentials, so that GStreamer's messages, which quote it, have none either.
    pub fn uri(&self) -> &str {
        &self.uri
    }
}

/// `HOST`, `HOST:PORT`, `[IPV6]:PORT`.
fn check_place(place: &str) -> Result<(), &'static str> {
    let (host, port) = match place.rsplit_once(':') {
        // A colon of the IPv6 address.
        Some(_) if place.ends_with(']') => (place, None),
        Some((host, port)) => (host, Some(port)),
        None => (place, None),
    };
    if host.is_empty() || host.contains(char::is_whitespace) {
        return Err("it names no host");
    }
    match port.map(str::parse::<u16>) {
        None | Some(Ok(1..)) => Ok(()),
        Some(_) => Err("its port is no number"),
    }
}

fn credentials(login: &str) -> Result<Credentials, &'static str> {
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let decoded = |text| glib::uri_unescape_string(text, glib::GStr::NONE).map(Into::into);
    match (decoded(user), decoded(password)) {
        (Some(user), Some(password)) => Ok(Credentials { user, password }),
        _ => Err("a % in its credentials is not followed by two digits (write %25 for a %)"),
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match (&self.credentials, self.uri.split_once("://")) {
            (Some(Credentials { user, .. }), Some((scheme, rest))) => {
                write!(f, "{scheme}://{user}:***@{rest}")
            }
            _ => f.write_str(&self.uri),
        }
    }
}

/// For what cannot be parsed: all that may be credentials goes.
fn redacted(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").map_or(("", text), |(scheme, rest)| (scheme, rest));
    match rest.rsplit_once('@') {
        Some((_, place)) => format!("{scheme}://***@{place}"),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_kept_apart() {
        let address = Address::parse("rtsp://admin:p%40ss@10.0.0.7:8554/live?channel=1&sub=%2F0").unwrap();
        assert_eq!(address.uri(), "rtsp://10.0.0.7:8554/live?channel=1&sub=%2F0");
        let Credentials { user, password } = address.credentials.clone().unwrap();
        assert_eq!((&user[..], &password[..]), ("admin", "p@ss"));
        assert_eq!(address.to_string(), "rtsp://admin:***@10.0.0.7:8554/live?channel=1&sub=%2F0");
        let address = Address::parse("rtsp://root:a#b:c@d@camera").unwrap();
        assert_eq!(address.uri(), "rtsp://camera");
        assert_eq!(address.credentials.unwrap().password, "a#b:c@d");
        for plain in ["rtsp://[::1]:8554/a", "rtsp://[::1]/a", "rtsps://host/a@b"] {
            assert_eq!(Address::parse(plain).unwrap().uri(), plain);
        }
    }

    #[test]
    fn those_of_the_address_come_first() {
        let common = Credentials { user: "viewer".into(), password: "secret".into() };
        let user = |address: &str| {
            let address = Address::parse(address).unwrap().or_credentials(Some(&common));
            address.credentials.unwrap().user
        };
        assert_eq!(user("rtsp://admin:p@host/"), "admin");
        assert_eq!(user("rtsp://host/"), "viewer");
    }

    #[test]
    fn wrong_addresses_are_refused_without_their_password() {
        for text in [
            "rtsp://admin:hush%@host/live",
            "rtsp://admin:hu/sh@host/live",
            "rtsp://admin:hush@host:port/live",
            "rtsp://admin:hush@host:0/live",
            "rtsp://admin:hush@/live",
            "http://admin:hush@host/live",
            "admin:hush@host/live",
            "",
        ] {
            let Err(reason) = Address::parse(text) else { panic!("{text} was taken") };
            assert!(reason.contains("is no camera's address") && !reason.contains("hu"), "{reason}");
        }
    }
}
