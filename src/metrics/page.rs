//! The page: one answer that holds all it needs.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

const HTML: &str = include_str!("page/index.html");
const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/script.js");

/// The page's text, and the `Content-Security-Policy` that lets it run its own style and script and fetch from its own
/// server, and nothing else.
pub fn render() -> (String, String) {
    // Keys of a new state are the system's randomness.
    let nonce = format!("{:016x}{:016x}", RandomState::new().hash_one(0), RandomState::new().hash_one(1));
    let page = HTML.replace("%nonce%", &nonce).replace("%style%", STYLE).replace("%script%", SCRIPT);
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    (page, policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_one_small_answer_that_no_one_can_guess() {
        let (page, policy) = render();
        let nonce = policy.split("'nonce-").nth(1).and_then(|rest| rest.split('\'').next()).unwrap();
        assert_eq!(nonce.len(), 32);
        assert_eq!(page.matches(&format!("nonce=\"{nonce}\"")).count(), 2, "style and script");
        assert!(["%nonce%", "%style%", "%script%"].iter().all(|place| !page.contains(place)));
        assert_ne!(render().1, policy);
        assert!(page.len() < 64_000 && SCRIPT.len() < 40_000, "{} bytes", page.len());
    }

    #[test]
    fn the_page_fetches_nothing_from_elsewhere_and_takes_names_as_text() {
        let page = render().0;
        // The namespace of SVG is a name, no address.
        let addresses = page.replace("http://www.w3.org/2000/svg", "");
        for forbidden in ["http://", "https://", "//cdn", "@import", "url("] {
            assert!(!addresses.contains(forbidden), "{forbidden}");
        }
        for forbidden in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"]
        {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
    }
}
