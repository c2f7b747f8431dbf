//! The property `metrics-address`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// `HOST:PORT`, `:PORT` or `PORT`. Without a host it is the loopback interface's: who wants the network to see the
/// figures says so. A host is an IP address or `localhost`; names are not looked up, which could block.
///
/// # Errors
/// A text for the user, with an example.
pub fn parse(text: &str) -> Result<SocketAddr, String> {
    let loopback = |port: &str| {
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|_| digits)?;
        Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
    };
    let trimmed = text.trim();
    let address = ["localhost:", ":", ""]
        .iter()
        .find_map(|host| trimmed.strip_prefix(host).and_then(loopback))
        .or_else(|| trimmed.parse().ok());
    address.filter(|address| address.port() != 0).ok_or_else(|| {
        format!(
            "metrics-address={text} is no address to serve metrics at: give an IP address (or localhost) and a port \
             from 1 to 65535, such as 127.0.0.1:9464, or 0.0.0.0:9464 for all interfaces"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn addresses_are_loopback_unless_named() {
        for (text, address) in [
            ("9464", "127.0.0.1:9464"),
            (":9464", "127.0.0.1:9464"),
            (" localhost:9464 ", "127.0.0.1:9464"),
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("0.0.0.0:9464", "0.0.0.0:9464"),
            ("10.1.2.3:65535", "10.1.2.3:65535"),
            ("[::1]:9464", "[::1]:9464"),
        ] {
            assert_eq!(parse(text).map(|address| address.to_string()).as_deref(), Ok(address), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_an_example() {
        for text in [
            "x",
            "",
            ":",
            "0",
            ":0",
            "127.0.0.1",
            "127.0.0.1:",
            "127.0.0.1:65536",
            "-1",
            "+80",
            "http://127.0.0.1:1",
            "::1",
        ] {
            let message = parse(text).unwrap_err();
            assert!(message.starts_with(&format!("metrics-address={text} ")), "{message}");
            assert!(message.contains("127.0.0.1:9464"), "{message}");
        }
    }
}
