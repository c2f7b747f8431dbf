//! What can be typed while it runs.

use std::io::BufRead;

pub const HELP: &str = "commands: add NAME URI, remove NAME, list, status, quit";

#[derive(Debug, PartialEq)]
pub enum Command {
    Add { name: String, uri: String },
    Remove { name: String },
    List,
    Status,
    Quit,
    Nothing,
}

/// # Errors
/// What is wrong with it. The line is not quoted: it may hold a password.
pub fn parse(line: &str) -> Result<Command, String> {
    let words: Vec<_> = line.split_whitespace().collect();
    Ok(match words[..] {
        [] => Command::Nothing,
        ["add", name, uri] => Command::Add { name: name.into(), uri: uri.into() },
        ["remove", name] => Command::Remove { name: name.into() },
        ["list"] => Command::List,
        ["status"] => Command::Status,
        ["quit"] => Command::Quit,
        [word @ ("add" | "remove" | "list" | "status" | "quit"), ..] => {
            return Err(format!("{word} is written differently; {HELP}"));
        }
        [..] => return Err(HELP.into()),
    })
}

/// Reads along in a thread of its own; that standard input ends means nothing, a service has none.
pub fn listen(mut obey: impl FnMut(String) + Send + 'static) {
    std::thread::spawn(move || std::io::stdin().lock().lines().map_while(Result::ok).for_each(&mut obey));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_understood_or_refused() {
        let add = Command::Add { name: "gate".into(), uri: "rtsp://a/b".into() };
        assert_eq!(parse("  add gate  rtsp://a/b "), Ok(add));
        assert_eq!(parse("remove gate"), Ok(Command::Remove { name: "gate".into() }));
        assert_eq!(parse(""), Ok(Command::Nothing));
        for wrong in ["add gate", "remove", "list all", "stop", "add a b hush"] {
            let reason = parse(wrong).unwrap_err();
            assert!(reason.contains(HELP) && !reason.contains("hush"), "{wrong}: {reason}");
        }
    }
}
